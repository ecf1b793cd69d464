"""What must not grow with the length of a run: memory, open files, files on disk, the time of a step."""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
from conftest import TINY

from dist_sketch.tracking.tracker import read_metrics

STEPS = 1002  # 167 epochs of the 13 pairs of `shards` at batch 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> tuple[Path, list[tuple[int, int]]]:
    """A long run of a small net; with it, (open files of its process, files in its folder) as they were seen."""
    folder = tmp_path_factory.mktemp("long") / "run"
    options = ("--data.shards", shards, *TINY, "--data.batch-size", 2, "--train.epochs", STEPS // 6, "--norm", "none")
    options += ("--data.workers", 1, "--generator.network", "baseline", "--generator.ema", 0.9)
    options += ("--checkpoint.interval-steps", 25, "--track.log-interval-steps", 6)
    options += ("--train.validate-interval-epochs", 5, "--train.sample-interval-epochs", 0, "--train.validate-limit", 1)
    command = [sys.executable, "-m", "dist_sketch", "train", *map(str, options), "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    seen = []
    while process.poll() is None:
        if (folder / "checkpoints" / "step-00000050").exists() or seen:  # everything has been opened once
            try:
                opened = len(os.listdir(f"/proc/{process.pid}/fd"))
            except OSError:
                break  # it has just ended
            seen.append((opened, sum(p.is_file() for p in folder.rglob("*"))))
        time.sleep(0.25)
    assert process.wait() == 0
    return folder, seen


def halves(folder: Path, name: str) -> tuple[list[float], list[float]]:
    """A figure of the log after the first 200 steps, in which memory pools fill, and in the last 200."""
    records = [r for r in read_metrics(folder) if r["kind"] == "train"]
    assert records[-1]["step"] == STEPS
    return (
        [r[name] for r in records if 200 < r["step"] <= 400],
        [r[name] for r in records if r["step"] > STEPS - 200],
    )


def test_memory_stays(run: tuple[Path, list[tuple[int, int]]]) -> None:
    early, late = halves(run[0], "speed/memory_mb")
    assert min(early) > 100  # it was measured
    assert median(late) < median(early) * 1.02 + 2


def test_a_step_takes_as_long_at_the_end(run: tuple[Path, list[tuple[int, int]]]) -> None:
    early, late = halves(run[0], "speed/images_per_s")
    assert median(late) > median(early) / 2  # other tests come and go


def test_files_stay_as_many(run: tuple[Path, list[tuple[int, int]]]) -> None:
    folder, seen = run
    opened, written = zip(*seen, strict=True)
    assert len(seen) > 10
    # A file that is being written, a checkpoint that comes while another goes: a few, and not more and more.
    assert max(opened[len(opened) // 2 :]) <= max(opened[: len(opened) // 2]) + 2
    assert max(written) <= 40
    assert len(list((folder / "checkpoints").iterdir())) == 3
