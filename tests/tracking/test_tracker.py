import json
import math
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ranked

from dist_sketch.core.config import TrackConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import LARGE
from dist_sketch.core.ranks import Ranks
from dist_sketch.tracking.speed import Speed
from dist_sketch.tracking.tracker import Tracker, drop_later_lines, read_metrics, revision, versions
from dist_sketch.tracking.wandb_run import WandbRun


def tracker(run: Path, *, step: int = 0, is_main: bool = True) -> Tracker:
    log = WandbRun(run, TrackConfig(wandb="off"), job="train", run_id="abcd1234", settings={})
    if is_main:
        drop_later_lines(run, step)
    return Tracker(run, log, is_main=is_main)


def lines(run: Path) -> list[str]:
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n") or not text
    return text.split("\n")[:-1]


# metrics.jsonl


def test_a_line_a_call(tmp_path: Path) -> None:
    before = time.time()
    log = tracker(tmp_path)
    log.log("train", 1, {"epoch": 0, "loss/d": 1.5, "lock/reason": "timer", "lock/d": 1})
    log.log("val", 1, {"val/ssim": 0.25, "name": "Zoë"})
    log.close()
    first, second = map(json.loads, lines(tmp_path))
    assert before - 1 <= first.pop("time") <= second.pop("time") <= time.time() + 1
    assert list(first) == ["kind", "step", "epoch", "loss/d", "lock/reason", "lock/d"]
    assert first == {"kind": "train", "step": 1, "epoch": 0, "loss/d": 1.5, "lock/reason": "timer", "lock/d": 1}
    assert second == {"kind": "val", "step": 1, "val/ssim": 0.25, "name": "Zoë"}
    assert "Zoë" in lines(tmp_path)[1]
    assert [r["kind"] for r in read_metrics(tmp_path)] == ["train", "val"]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    tracker(tmp_path).log("train", 1, {"loss/d": math.nan, "loss/g": math.inf, "n": {"a": [-math.inf]}})
    (line,) = lines(tmp_path)
    assert '"loss/d": null, "loss/g": null, "n": {"a": [null]}' in line


@pytest.mark.parametrize("kind", ["pipe", "device", "huge", "folder"])
@pytest.mark.parametrize("read", [read_metrics, lambda run: drop_later_lines(run, 3)])
def test_a_record_that_never_ends_is_a_sentence(kind: str, read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    if kind == "huge":
        path.touch()
        os.truncate(path, LARGE + 1)
    else:
        {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda p: os.symlink("/dev/zero", p)}[kind](path)
    with pytest.raises(UserError, match=f"^{path}: cannot be read"):
        read(tmp_path)
    assert os.path.lexists(path)


def test_a_line_without_an_end_takes_no_memory_and_hides_no_other(tmp_path: Path) -> None:
    good = b'{"kind": "train", "step": 1}\n'
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(good)
    os.truncate(path, 2**26)  # zeros
    with path.open("ab") as f:
        f.write(b"\n\xff" + good + good.replace(b"1", b"2"))
    tracemalloc.start()
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\nb", "a\x1cb"])
def test_a_line_end_within_a_value_does_not_cut_its_line(tmp_path: Path, text: str) -> None:
    tracker(tmp_path).log("bad", 1, {"keys": text})
    tracker(tmp_path, step=1)
    assert [r["keys"] for r in read_metrics(tmp_path)] == [text]


def test_resuming_cuts_the_log_back_to_the_checkpoint(tmp_path: Path) -> None:
    log = tracker(tmp_path)
    for step in range(1, 6):
        log.log("train", step, {"loss/d": step / 10})
    log.log("epoch", 3, {})
    path = tmp_path / "metrics.jsonl"
    kept = [line for line in lines(tmp_path) if json.loads(line)["step"] <= 3]
    path.write_text(path.read_text() + '{"kind": "train", "step": 1, "loss')  # killed in mid-line
    log = tracker(tmp_path, step=3)
    assert lines(tmp_path) == kept
    log.log("train", 4, {"again": True})
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 3, 4]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    good = '{"kind": "train", "step": 1}'
    for bad in ("[]", "3", "null", '{"kind": "train"}', '{"step": "x"}', "\0\0\0", "\ufffd", ""):
        (tmp_path / "metrics.jsonl").write_text(f"{bad}\n{good}\n{bad}")
        tracker(tmp_path, step=1)
        assert lines(tmp_path) == [good]
    (tmp_path / "metrics.jsonl").write_bytes(b'\xff\xfe\n{"kind": "train", "step": 1}\n{"kind"')
    assert read_metrics(tmp_path) == [{"kind": "train", "step": 1}]
    tracker(tmp_path, step=1)
    assert lines(tmp_path) == [good]


def test_a_run_without_a_log(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    tracker(tmp_path, step=5)
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    log = tracker(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written \(Is a directory\)$"):
        log.log("train", 1, {})


# status.json


def test_status_is_whole_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, replace, seen = tracker(tmp_path), os.replace, []
    log.status(state="running", step=1, loss=math.nan)
    first = json.loads((tmp_path / "status.json").read_text())
    assert (first["state"], first["step"], first["loss"]) == ("running", 1, None)
    assert abs(first["time"] - time.time()) < 60

    def look(old: Path, new: Path) -> None:
        seen.append((json.loads(new.read_text()), json.loads(old.read_text())["state"]))
        replace(old, new)

    monkeypatch.setattr(os, "replace", look)
    log.status(state="finished")
    assert seen == [(first, "finished")]
    assert os.listdir(tmp_path) == ["status.json"]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 9}\n')
    log = tracker(tmp_path, is_main=False)
    log.log("train", 1, {"loss/d": 1.0})
    log.status(state="running")
    log.wandb.picture("samples", 1, 8, tmp_path / "none.png")
    log.close()
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    assert lines(tmp_path) == ['{"kind": "train", "step": 9}']


def test_versions_are_those_that_are_installed() -> None:

    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert {"dist-sketch", "torchvision", "accelerate", "webdataset", "cuda"} <= set(found)


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_revision_is_the_checkout_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dist_sketch import __version__

    package = tmp_path / "dist_sketch" / "tracking"
    package.mkdir(parents=True)
    (package / "track.py").write_text("")
    monkeypatch.setattr("dist_sketch.tracking.tracker.__file__", str(package / "track.py"))
    assert revision() == __version__  # no checkout
    git(tmp_path, "init", "-q")
    assert revision() == __version__  # nothing is committed
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert revision() == commit
    (tmp_path / "notes").write_text("not ours")
    assert revision() == commit
    (package / "track.py").write_text("# changed")
    assert revision() == f"{commit}+dirty"
    inner = tmp_path / "venv" / "dist_sketch" / "tracking"
    inner.mkdir(parents=True)
    monkeypatch.setattr("dist_sketch.tracking.tracker.__file__", str(inner / "track.py"))
    assert revision() == __version__  # somebody else's checkout, into which the package is installed
    monkeypatch.setenv("PATH", "")
    assert revision() == __version__


# Speed


def two_speeds(ranks: Ranks) -> ranked.Result:
    """Rank 1 is the slower, rank 0 waits longer for its data; twice."""
    speed = Speed(ranks, 10)
    found = []
    for step in (14, 16):
        time.sleep(0.1 + 0.3 * ranks.rank)
        speed.waited_s += 0.05 if ranks.rank == 0 else 0.0
        found.append(speed.take(step, batch_size=8))
    return {"found": found}


def test_the_slowest_rank_counts(tmp_path: Path) -> None:
    one, other = (r["found"] for r in ranked.run(2, two_speeds, tmp_path))
    assert one == other
    for steps, values in zip((4, 2), one, strict=True):
        assert 0.4 <= values["speed/step_s"] * steps < 30
        assert values["speed/images_per_s"] == pytest.approx(8 / values["speed/step_s"])
        assert 0 < values["speed/data_wait"] <= 0.5  # rank 0's, of whose 0.1 s half was waiting
        assert 10 < values["speed/memory_mb"] < 1e5
    assert one[0] != one[1]


def test_memory_is_this_process_s() -> None:
    """In a process of its own: it is a peak, and tests before this one may have had a higher one."""
    script = """
import torch
from dist_sketch.tracking.speed import memory_mb
before = memory_mb(torch.device("cpu"))
kept = torch.ones(30_000_000)
print(memory_mb(torch.device("cpu")) - before)
"""
    more = float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert 100 < more < 200  # MB, of 120
