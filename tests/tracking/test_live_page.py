"""The page of a run is written now and then, and whatever happens to it, training goes on."""

import errno
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_sketch.core.fileio import write_atomic
from dist_sketch.tracking import live_page
from dist_sketch.tracking.live_page import FIRST_S, SHARE, LivePage
from dist_sketch.tracking.tracker import Tracker

STOPPED = {"state": "stopped"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(live_page, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def test_it_costs_a_small_share_of_the_time(tmp_path: Path, clock: SimpleNamespace) -> None:
    written: list[float] = []

    def write(run: Path, status: Any) -> None:
        assert run == tmp_path
        written.append(clock.now)
        clock.now += 3.0  # so long it takes

    page = LivePage(tmp_path, write)
    while clock.now < 1000:
        page.update()
        clock.now += 1.0
    assert written[0] == 100 + FIRST_S
    assert written[1] == written[0] + 3 + FIRST_S  # the first time, it had to import much
    pauses = [after - before for before, after in pairwise(written[1:])]
    assert pauses
    assert all(3 / pause <= SHARE for pause in pauses)
    page.update({"state": "running"})  # too early
    page.update(STOPPED)
    assert written[-1] == clock.now - 3


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("two\nlines \x1b[31m"), r"two\nlines \x1b[31m"),
    ],
)
def test_an_error_is_one_line_and_hurts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, why: str
) -> None:
    def write(run: Path, status: Any) -> None:
        raise error

    page = LivePage(tmp_path, write)
    for _ in range(3):
        page.update(STOPPED)
    out = capsys.readouterr().out
    assert out.startswith("warning: the run's page is not written (")
    assert why in out
    assert len(out.splitlines()) == 1


def test_a_full_disk_leaves_the_page_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index.html").write_text("before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    page = LivePage(tmp_path, lambda run, _: write_atomic(run / "index.html", "after", durable=False))
    with monkeypatch.context() as patch:
        patch.setattr("dist_sketch.core.fileio.os.replace", full)
        page.update(STOPPED)
    assert (tmp_path / "index.html").read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]
    page.update(STOPPED)  # there is room again
    assert (tmp_path / "index.html").read_text() == "after"


def test_only_the_first_rank_writes_and_at_each_change_of_the_state(tmp_path: Path) -> None:
    calls: list[tuple[Path, str, bool]] = []

    def write(run: Path, status: Any) -> None:
        calls.append((run, status["state"], (run / "status.json").exists()))

    log = SimpleNamespace(log=lambda *_: None)
    for is_main in (True, False):
        tracker = Tracker(tmp_path, log, is_main=is_main, page=write)  # type: ignore[arg-type]
        tracker.show()  # too early
        tracker.status(state="finished", step=1)
    assert calls == [
        (tmp_path, "finished", False)
    ]  # before status.json says so: who is killed then, begins again there
