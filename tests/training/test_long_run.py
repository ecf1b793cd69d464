"""What must not grow with the length of a run: memory, open files, files on disk, the work of a step."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest
from conftest import TINY
from support.forks import Forks
from support.jobs import last_step

from dist_sketch.tracking.tracker import read_metrics

STEPS = 1002  # 167 epochs of the 13 pairs of `shards` at batch 2


class Seen(NamedTuple):
    """A look at the running process."""

    step: int  # of the log's last line
    cpu_s: float  # that the process has used; unlike the time it does not depend on what else the machine does
    opened: int  # files
    written: int  # files in the run's folder


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks("", tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, forks: Forks, shards: Path) -> tuple[Path, list[Seen]]:
    """A long run of tiny networks, and what was seen of it after its first 50 steps."""
    folder = tmp_path_factory.mktemp("long") / "run"
    options: tuple[Any, ...] = ("--data.shards", shards, *TINY, "--data.batch-size", 2, "--train.epochs", STEPS // 6)
    options += ("--norm", "none", "--data.workers", 1, "--generator.ema", 0.9)
    options += ("--checkpoint.interval-steps", 25, "--track.log-interval-steps", 6)
    options += ("--train.validate-interval-epochs", 5, "--train.sample-interval-epochs", 0, "--train.validate-limit", 1)
    pid = forks.start("train", *options, "--out", folder)
    seen = []
    while forks.poll(pid) is None:
        if (step := last_step(folder)) > 50:  # by now it has opened everything that it opens once
            written = sum(len(names) for _, _, names in os.walk(folder))
            seen.append(Seen(step, cpu_s(pid), len(os.listdir(f"/proc/{pid}/fd")), written))
        time.sleep(0.05)
    ended = forks.wait(pid)
    assert ended.code == 0, ended
    return folder, [s for s in seen if s.opened]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_memory_stays(run: tuple[Path, list[Seen]]) -> None:
    records = [r for r in read_metrics(run[0]) if r["kind"] == "train"]
    assert records[-1]["step"] == STEPS
    early = [r["speed/memory_mb"] for r in records if 200 < r["step"] <= 400]  # memory pools have filled by then
    late = [r["speed/memory_mb"] for r in records if r["step"] > STEPS - 200]
    assert min(early) > 100  # it was measured
    assert median(late) < median(early) * 1.02 + 2


def test_a_step_takes_as_much_work_at_the_end(run: tuple[Path, list[Seen]]) -> None:
    def work(first: int, last: int) -> float:
        some = [s for s in run[1] if first <= s.step <= last]
        return (some[-1].cpu_s - some[0].cpu_s) / (some[-1].step - some[0].step)

    assert work(STEPS - 400, STEPS) < 2 * work(100, 500)


def test_files_stay_as_many(run: tuple[Path, list[Seen]]) -> None:
    folder, seen = run
    opened, written = [s.opened for s in seen], [s.written for s in seen]
    # A few more at times: a file that is being written, a checkpoint that replaces another.
    assert max(opened[len(opened) // 2 :]) <= max(opened[: len(opened) // 2]) + 2
    assert max(written) <= 40
    assert len(list((folder / "checkpoints").iterdir())) == 3
