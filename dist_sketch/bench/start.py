"""`dist-sketch bench start`: how long a user, or a job that was requeued, waits for the first step."""

import subprocess
import sys
import time
from pathlib import Path

from dist_sketch.bench.figures import BenchReport, figure
from dist_sketch.data import pack, recipe
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.tracking import tracker

NAME = "start"


PAIRS, SIZE = 4, 64


LIBRARIES = "torch, torchvision, accelerate"


SECONDS = dict[str, list[float]]


def run(report: BenchReport, folder: Path) -> None:
    """All figures of the start."""
    options, shards = report.options, _shards(folder)
    times: SECONDS = {name: [] for name in ("python", "help", "imports", "first", "resumed")}
    for turn in range(-1, options.repeats):  # the first fills the disk's cache
        run_folder = folder / f"run{turn + 1}"
        found = {
            "python": _python("-c", "pass"),
            "help": _python("-m", "dist_sketch", "--help"),
            "imports": _python("-c", f"import {LIBRARIES}"),
            "first": _first_step(shards, run_folder, epochs=1),
            "resumed": _first_step(shards, run_folder, epochs=2),
        }
        if turn >= 0:
            for name, seconds in found.items():
                times[name].append(seconds)
    for name, ours, baseline in (
        ("dist-sketch --help", "help", "python"),
        ("training: start to the end of the first step", "first", "imports"),
        ("the same, resumed from a checkpoint", "resumed", "imports"),
    ):
        words = {"python": "python -c pass", "imports": f"import {LIBRARIES}"}[baseline]
        report.add(
            figure(NAME, name, times[ours], times[baseline], unit="s", baseline_name=words, lower_is_better=True)
        )
    report.note(NAME, f"{PAIRS} pairs at {SIZE} px, no loader processes, W&B off; the baselines are limits: ratio 1")


def _shards(folder: Path) -> Path:
    synth.write(folder / "pairs", count=PAIRS, val=0, size=SIZE, seed=0, workers=1)
    pack.pack(recipe.load(str(folder / "pairs")), folder / "shards", size=SIZE, workers=1)
    return folder / "shards"


def _python(*arguments: str) -> float:
    """Seconds that a Python takes from its start to its end."""
    since = time.perf_counter()
    subprocess.run((sys.executable, *arguments), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - since


def _first_step(shards: Path, out: Path, epochs: int) -> float:
    """Seconds from the start of `dist-sketch train` until the first step of this leg has ended."""
    began = time.time()
    quiet = ("--train.validate-interval-epochs", "0", "--train.sample-interval-epochs", "0", "--track.wandb", "off")
    small = ("--data.batch-size", str(PAIRS), "--data.workers", "0", "--track.log-interval-steps", "1")
    size = ("--train.epochs", str(epochs), *small, *quiet)
    _python("-m", "dist_sketch", "train", "--data.shards", str(shards), *size, "--out", str(out))
    steps = [r for r in tracker.read_metrics(out) if r["kind"] == "train" and r["step"] == epochs]
    return float(steps[0]["time"]) - began
