"""`dist-sketch bench start`: how long a user, or a job that was requeued, waits for the first training step.

And what a set of a million pairs adds to that, and to the memory of a rank.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dist_sketch.bench import large_set
from dist_sketch.bench.measure import BenchReport
from dist_sketch.core.errors import UserError
from dist_sketch.data import pack, recipe
from dist_sketch.data.order import order
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.tracking import tracker

PAIRS, SIZE = 4, 64
FEW, STEPS = 1000, 8  # of the sets of which only the first steps' pairs exist
MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of `ru_maxrss`
LIBRARIES = "import torch, torchvision, accelerate"


def run(report: BenchReport, folder: Path) -> None:
    """Adds all figures of the start."""
    shards = folder / "shards"
    synth.write(folder / "pairs", count=PAIRS, val=0, size=SIZE, seed=0, workers=1)
    pack.pack(recipe.load(str(folder / "pairs")), shards, size=SIZE, workers=1)
    rounds, warm = [], 0 if report.options.quick else 1  # the first round only fills the disk's cache
    for turn in range(warm + report.options.repeats):
        out = folder / f"run{turn}"
        found = {
            "python": _python("-c", "pass"),
            "help": _python("-m", "dist_sketch", "--help"),
            "imports": _python("-c", LIBRARIES),
            "first": _first_step(shards, out, report.options.quick, epochs=1),
            "resumed": _first_step(shards, out, report.options.quick, epochs=2),
        }
        rounds.append(found)
    times = {name: [found[name] for found in rounds[warm:]] for name in rounds[0]}
    report.add("dist-sketch --help", times["help"], times["python"], "s", "python -c pass")
    report.add("training: start to the end of the first step", times["first"], times["imports"], "s", LIBRARIES)
    report.add("the same, resumed from a checkpoint", times["resumed"], times["imports"], "s", LIBRARIES)
    _large(report, folder)
    report.note(f"{PAIRS} pairs at {SIZE} px, no loader processes, W&B off; the baselines are limits: ratio 1")


def _large(report: BenchReport, folder: Path) -> None:
    """A training on a large set beside one on a small set, each until it has done a step."""
    large, small = folder / "large", folder / "small"
    sizes = {large: report.options.index, small: min(report.options.index, FEW)}
    for shards, count in sizes.items():
        large_set.write(shards, count, order(count, seed=0, epoch=0, shuffle=True)[: STEPS * PAIRS].tolist())
    rounds = [
        [_until_a_step(shards, folder / f"{shards.name}{turn}", report.options.quick) for shards in sizes]
        for turn in range(report.options.repeats)
    ]
    name, about = f"training on {sizes[large]:,} pairs", f"{sizes[small]:,} pairs"
    for what, unit, place in (("start to the end of the first step", "s", 0), ("memory of a rank", "MB", 1)):
        ours, theirs = ([one[i][place] for one in rounds] for i in range(len(sizes)))
        report.add(f"{name}: {what}", ours, theirs, unit, about)


def _until_a_step(shards: Path, out: Path, quick: bool) -> tuple[float, float]:
    """Seconds from the start of `dist-sketch train` to the end of its first step, and the process's largest memory."""
    began, log = time.time(), out.with_suffix(".log")
    words = ("-m", "dist_sketch", "train", *_training(shards, out, quick, epochs=1))
    with open(log, "wb") as file:
        process = subprocess.Popen((sys.executable, *words), stdout=file, stderr=subprocess.STDOUT)
    try:
        while not (steps := _steps(out)):
            if process.poll() is not None:
                raise UserError(f"the training has ended without a step: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
    finally:
        if process.returncode is None:
            process.kill()
            _, process.returncode, usage = os.wait4(process.pid, 0)
    return float(steps[0]["time"]) - began, usage.ru_maxrss * MAXRSS / 1e6


def _steps(out: Path) -> list[dict[str, Any]]:
    return [r for r in tracker.read_metrics(out) if r["kind"] == "train"] if (out / "metrics.jsonl").exists() else []


def _python(*arguments: str) -> float:
    """Seconds that Python takes from its start to its end."""
    since = time.perf_counter()
    subprocess.run((sys.executable, *arguments), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - since


def _first_step(shards: Path, out: Path, quick: bool, epochs: int) -> float:
    """Seconds from the start of `dist-sketch train` until its first step has ended."""
    began = time.time()
    _python("-m", "dist_sketch", "train", *_training(shards, out, quick, epochs))
    (step,) = (record for record in _steps(out) if record["step"] == epochs)
    return float(step["time"]) - began


def _training(shards: Path, out: Path, quick: bool, epochs: int) -> tuple[str, ...]:
    """The arguments of a training in small batches, without anything beside its steps; `quick`: of tiny networks."""
    quiet = ("--train.validate-interval-epochs", "0", "--train.sample-interval-epochs", "0", "--track.wandb", "off")
    small = ("--data.batch-size", str(PAIRS), "--data.workers", "0", "--track.log-interval-steps", "1")
    nets = ("--generator.width", "8", "--discriminator.width", "8") if quick else ()
    return "--data.shards", str(shards), "--train.epochs", str(epochs), *small, *quiet, *nets, "--out", str(out)
