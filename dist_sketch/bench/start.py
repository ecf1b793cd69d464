"""`dist-sketch bench start`: how long a user, or a job that was requeued, waits for the first training step."""

import subprocess
import sys
import time
from pathlib import Path

from dist_sketch.bench.measure import BenchReport
from dist_sketch.data import pack, recipe
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.tracking import tracker

PAIRS, SIZE = 4, 64
LIBRARIES = "import torch, torchvision, accelerate"


def run(report: BenchReport, folder: Path) -> None:
    """Adds all figures of the start."""
    shards = folder / "shards"
    synth.write(folder / "pairs", count=PAIRS, val=0, size=SIZE, seed=0, workers=1)
    pack.pack(recipe.load(str(folder / "pairs")), shards, size=SIZE, workers=1)
    rounds = []
    for turn in range(report.options.repeats + 1):
        out = folder / f"run{turn}"
        found = {
            "python": _python("-c", "pass"),
            "help": _python("-m", "dist_sketch", "--help"),
            "imports": _python("-c", LIBRARIES),
            "first": _first_step(shards, out, epochs=1),
            "resumed": _first_step(shards, out, epochs=2),
        }
        rounds.append(found)
    # without the first round, which only fills the disk's cache
    times = {name: [found[name] for found in rounds[1:]] for name in rounds[0]}
    report.add("dist-sketch --help", times["help"], times["python"], "s", "python -c pass")
    report.add("training: start to the end of the first step", times["first"], times["imports"], "s", LIBRARIES)
    report.add("the same, resumed from a checkpoint", times["resumed"], times["imports"], "s", LIBRARIES)
    report.note(f"{PAIRS} pairs at {SIZE} px, no loader processes, W&B off; the baselines are limits: ratio 1")


def _python(*arguments: str) -> float:
    """Seconds that Python takes from its start to its end."""
    since = time.perf_counter()
    subprocess.run((sys.executable, *arguments), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - since


def _first_step(shards: Path, out: Path, epochs: int) -> float:
    """Seconds from the start of `dist-sketch train` until its first step has ended."""
    began = time.time()
    quiet = ("--train.validate-interval-epochs", "0", "--train.sample-interval-epochs", "0", "--track.wandb", "off")
    small = ("--data.batch-size", str(PAIRS), "--data.workers", "0", "--track.log-interval-steps", "1")
    size = ("--train.epochs", str(epochs), *small, *quiet)
    _python("-m", "dist_sketch", "train", "--data.shards", str(shards), *size, "--out", str(out))
    steps = [r for r in tracker.read_metrics(out) if r["kind"] == "train" and r["step"] == epochs]
    return float(steps[0]["time"]) - began
