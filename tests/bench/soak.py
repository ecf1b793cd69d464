"""Kill a run repeatedly, and check that it ends bit for bit like an undisturbed one.

    python tests/bench/soak.py --kills 30

It draws small data and trains twice, undisturbed and with faults, with real networks, processes and launcher on CPUs.
A fault is SIGKILL to a rank, the launcher or all processes, SIGTERM or SIGUSR2 to a rank, or SIGTERM to the launcher. A
third of the faults come while the processes start, the others at random moments of the training. After each fault all
processes must end within 90 s; then the same command continues the run. A leg is one such start. Exit code 0: both runs
ended bit for bit equal, and no fault cost more steps than those since the last checkpoint.
"""

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import tyro
from rich.console import Console
from rich.table import Table
from support.jobs import Job, last_step
from support.outcome import differences, outcome

from dist_sketch.model import checkpoint

KINDS = ("SIGKILL rank", "SIGKILL all", "SIGKILL launcher", "SIGTERM rank", "SIGUSR2 rank", "SIGTERM launcher")
LONGEST_STEPS = 10  # that a leg trains before its fault


@dataclass(frozen=True, kw_only=True)
class Soak:
    """Kill a run repeatedly, and check that it ends bit for bit like an undisturbed one."""

    kills: int = 30
    """Number of faults; 10 take about 5 minutes on 2 cores."""
    seed: int = 0
    """Another seed gives other kinds and moments of faults."""
    ranks: int = 2
    """Processes; the global batch is 2 pairs a rank."""
    interval_steps: int = 5
    """Steps between two checkpoints."""
    out: Path | None = None
    """Folder for the data and both runs, which must not exist; default: a temporary one, kept after a failure."""


class Fault(NamedTuple):
    """One fault and its consequences."""

    kind: str
    in_training: bool
    resumed: int  # the step from which the disturbed leg continued
    lost: int  # steps in the log that no checkpoint contains
    gone_s: float  # until all processes of the job had ended


def strike(job: Job, kind: str, draw: random.Random) -> None:
    """Causes one fault."""
    name, victim = kind.split()
    number = signal.Signals[name]
    if victim == "all":
        job.kill()
    elif victim == "launcher":
        job.launcher.send_signal(number)
    elif pids := job.pids():  # none: it is too early
        os.kill(draw.choice(pids), number)
    else:
        job.launcher.kill()


def newest_step(run: Path) -> int:
    """The step of the newest checkpoint; 0 if there is none."""
    return max((checkpoint.step_of(f) for f in checkpoint.folders_of(run)), default=0)


def disturb(start: Callable[[], Job], run: Path, kind: str, startup_s: float | None, draw: random.Random) -> Fault:
    """Starts a job, waits for a random moment, causes the fault, and waits for the job's end.

    Args:
        startup_s: how long a start takes, if the fault shall come during the start.
    """
    resumed = newest_step(run)
    log = run / "metrics.jsonl"
    before = log.stat().st_ino if log.exists() else None
    job = start()
    if startup_s is None:
        step = resumed + draw.randint(1, LONGEST_STEPS)
        job.wait_for(lambda: _is_new(log, before) and last_step(run) >= step, f"step {step}")
        time.sleep(draw.uniform(0, 0.3))  # a random moment of about a step and a save
    else:
        time.sleep(draw.uniform(0, startup_s))
    trains = _is_new(log, before) and last_step(run) > resumed
    strike(job, kind, draw)
    gone_s = job.gone()
    lost = last_step(run) - newest_step(run) if _is_new(log, before) else 0
    return Fault(kind, trains, resumed, lost, gone_s)


def _is_new(log: Path, before: int | None) -> bool:
    """Whether the leg has already created the log or cut it back to its checkpoint, which replaces the file."""
    return log.exists() and log.stat().st_ino != before


def soak(options: Soak, folder: Path, say: Callable[[object], None]) -> bool:
    """Trains both runs and compares them; returns whether everything is right."""
    draw, data = random.Random(options.seed), folder / "data"
    for command in (
        ["synth", data / "pairs", "--count", 6 * options.ranks + 1, "--val", 3, "--size", 64, "--workers", 1],
        ["pack", data / "pairs", "--out", data / "shards", "--size", 64, "--workers", 1],
    ):
        subprocess.run([sys.executable, "-m", "dist_sketch", *map(str, command)], check=True, capture_output=True)
    moments = [n % 3 == 2 for n in range(options.kills)]  # a third at the start
    kinds = [KINDS[n % len(KINDS)] for n in range(options.kills)]
    draw.shuffle(moments)
    draw.shuffle(kinds)
    epochs = 2 + moments.count(False) * LONGEST_STEPS // 3  # of three steps
    arguments: tuple[object, ...] = ("--data.shards", data / "shards", "--data.batch-size", 2 * options.ranks)
    arguments += ("--train.epochs", epochs, "--train.precision", "no", "--generator.ema", 0.9, "--track.wandb", "off")
    arguments += ("--checkpoint.interval-steps", options.interval_steps, "--track.log-interval-steps", 1)

    def start(run: str) -> Job:
        return Job(folder / run, "train", *arguments, ranks=options.ranks)

    say(f"{folder}: {3 * epochs} steps on {options.ranks} ranks, a checkpoint every {options.interval_steps}")
    first = start("undisturbed")
    first.wait_for(lambda: last_step(first.run) > 0, "the first step")
    startup_s = time.monotonic() - first.started
    _finish(first)
    say(f"undisturbed: {time.monotonic() - first.started:.0f} s, {startup_s:.0f} s of them to the first step")
    faults = []
    for n, (kind, at_the_start) in enumerate(zip(kinds, moments, strict=True), 1):
        moment = startup_s if at_the_start else None
        fault = disturb(lambda: start("disturbed"), folder / "disturbed", kind, moment, draw)
        faults.append(fault)
        where = "in training" if fault.in_training else "at the start"
        say(
            f"{n:3} {kind:16} {where:12} from step {fault.resumed:3}, {fault.lost} lost, "
            f"all gone after {fault.gone_s:.1f} s"
        )
    last = newest_step(folder / "disturbed")
    _finish(start("disturbed"))
    wrong = differences(folder / "disturbed", outcome(folder / "undisturbed"))
    return _judge(faults, last, wrong, options, say)


def _finish(job: Job) -> None:
    if job.launcher.wait() != 0:
        raise SystemExit(job.printed()[1])


def _judge(faults: list[Fault], last: int, wrong: list[str], options: Soak, say: Callable[[object], None]) -> bool:
    """Prints the table; returns whether everything is right."""
    table = Table("fault", "in training", "at the start", "steps lost: most", "mean", "longest end, s")
    for kind in (*KINDS, "all"):
        of_kind = [f for f in faults if kind in (f.kind, "all")]
        if of_kind:
            lost, trained = [f.lost for f in of_kind], sum(f.in_training for f in of_kind)
            cells = (trained, len(of_kind) - trained, max(lost), f"{statistics.mean(lost):.1f}")
            table.add_row(kind, *map(str, cells), f"{max(f.gone_s for f in of_kind):.1f}")
    say(table)
    say(f"legs: {len(faults) + 1}; resumed from step {', '.join(str(f.resumed) for f in faults)}, {last}")
    too_much = max((f.lost for f in faults), default=0) > options.interval_steps
    if too_much:
        say(f"a fault cost more than the {options.interval_steps} steps between two checkpoints")
    for sentence in wrong:
        say(sentence)
    say(f"bit-equal: {'no' if wrong else 'yes'}")
    return not wrong and not too_much


def main() -> None:
    """The command line."""
    options = tyro.cli(Soak, description=__doc__)
    say = Console(soft_wrap=True, highlight=False).print
    folder = (options.out or Path(tempfile.mkdtemp(prefix="soak-"))).resolve()
    folder.mkdir(parents=True, exist_ok=options.out is None)
    good = soak(options, folder, say)
    if good and options.out is None:
        shutil.rmtree(folder)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
