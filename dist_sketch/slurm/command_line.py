"""`dist-sketch submit` on the command line: checks, then sbatch."""

import os
import shlex
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated

import tyro

from dist_sketch.core.errors import UserError
from dist_sketch.core.rank_logs import open_log
from dist_sketch.slurm import doctor, logs, submit
from dist_sketch.slurm.attempt import (
    CANCELLED_S,
    NOT_FINISHED,
    REQUEUED_S,
    JobSteps,
    check_gpus,
    end_of,
    name,
    scontrol,
)
from dist_sketch.slurm.doctor import report
from dist_sketch.slurm.logs import describe
from dist_sketch.slurm.node import NodePlace, NodeRanks, check_port, command, leave_on_signal, read_place, variables
from dist_sketch.slurm.submit import requests
from dist_sketch.slurm.verdict import look, record, settle


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """Look for what would make a job fail: dist-sketch doctor KIND WORDS ..., the words of `dist-sketch submit`.

    Exit code 0, or 2 if a check fails. On the login node; `dist-sketch submit` begins with it.
    """

    words: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="KIND WORDS ...")]]
    """As in: train --nodes=4 --gpus-per-node=8 shards=shards/faces out=runs/faces --train.epochs 200."""

    def run(self) -> int:
        """Runs the command."""
        return 2 if report(requests(self.words)) else 0


@dataclass(frozen=True, kw_only=True)
class LegCommand:
    """Run a leg of a SLURM job that trains: its step, then the decision: done, requeue (which it does), or stop.

    In a batch script, as its last command: exec dist-sketch leg RUN -- srun ... dist-sketch node -- train ...
    """

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """Run folder."""
    command: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="-- COMMAND ...")]]
    """The step, after two dashes."""
    then: str = ""
    """A second step, as a line of shell words, for when the run is finished."""
    requeues: int = 20
    """Requeues that the job asks for before it stops; those that SLURM decides by itself do not count."""

    def run(self) -> int:
        """Runs the command."""
        if not self.command:
            raise UserError("leg: there is nothing to run; give the step after two dashes: -- srun ...")
        check_gpus(os.environ)
        steps, began = JobSteps(), time.time()
        job, number = name(os.environ), os.environ.get("SLURM_RESTART_COUNT", "0")
        leg, nodes = f"=== job {job} leg {number}", os.environ.get("SLURM_JOB_NODELIST", "no node")
        print(f"{leg}: {nodes}, {time.strftime('%Y-%m-%d %H:%M:%S')} ===", flush=True)
        end = end_of(job)
        if end:
            os.environ["SLURM_JOB_END_TIME"] = end  # by it the run stops in time even if no signal comes
        code = steps.run(list(self.command))
        if steps.ended:
            return self._ended(code, began, steps)
        word, why = settle(self.folder, code=code, since=began, warned=steps.warned, most_requeues=self.requeues)
        if word == "done" and self.then:
            left = None if steps.warned else steps.run(shlex.split(self.then), saves=False)
            if steps.ended:
                return self._ended(code, began, steps)
            if left != 0 and steps.warned:  # it has nothing to save: the next leg does it anew
                word, why = ("requeue" if int(number) < self.requeues else "stop"), f"{why}; the second step is left"
            elif left:
                word, why = "stop", f"{why}, but its second step ended with {left}"
        if word == "requeue":
            steps.wait_for_the_end(CANCELLED_S)  # a step may end before scancel's signal comes here
            if steps.ended:
                return self._ended(code, began, steps)
        print(f"{leg}: {word} {why} ===", flush=True)
        if word == "done":
            return 0
        if word == "requeue" and scontrol("requeue", job):
            steps.wait_for_the_end(REQUEUED_S)
        if not steps.ended:
            print(logs.describe(self.folder), file=sys.stderr)
        return NOT_FINISHED

    def _ended(self, code: int, began: float, steps: JobSteps) -> int:
        """After scancel nothing more is wanted; after preemption SLURM requeues by itself."""
        print("=== ended by SLURM ===", flush=True)
        with suppress(UserError):
            leg = look(self.folder, code=code, since=began, warned=steps.warned)
            record(self.folder, leg, "ended", "by SLURM: cancelled, preempted, or out of time")
        return 128 + signal.SIGTERM


@dataclass(frozen=True, kw_only=True)
class LogsCommand:
    """Tell how a job's run stands: its status, its legs, and the last words of the rank that failed first."""

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
    """Run folder."""
    lines: int = 30
    """Lines of that rank's log."""

    def run(self) -> int:
        """Runs the command."""
        print(describe(self.folder, self.lines))
        return 0


@dataclass(frozen=True, kw_only=True)
class NodeCommand:
    """Start a node's ranks inside a SLURM step: srun --ntasks-per-node=1 dist-sketch node -- COMMAND ..."""

    command: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="-- COMMAND ...")]]
    """What each rank runs: a command of dist-sketch with its arguments, after two dashes."""
    procs: int | None = None
    """Ranks a node; default: one a GPU, or one where the job has no GPUs."""
    port: int | None = None
    """Where the ranks meet on the first node; default: 20000 + job id modulo 12000."""
    logs: Path | None = None
    """Folder for a log a rank and a node."""
    stage: Path | None = None
    """Shards that are first copied to this node's own disk ($SLURM_TMPDIR or $TMPDIR), and verified there."""

    def run(self) -> int:
        """Runs the command."""
        signal.signal(signal.SIGTERM, leave_on_signal)
        sinks: list[IO[bytes]] = [sys.stdout.buffer]
        if self.logs:
            file = open_log(self.logs, f"node-{int(os.environ.get('SLURM_NODEID') or 0):05d}.log")
            sinks += [file] if file else []
        try:
            if self.stage is None:
                return self._run(sinks, {})
            from dist_sketch.data import local_copy

            with local_copy.staged(self.stage, local_copy.home(os.environ)) as found:
                return self._run(sinks, found)
        except UserError as e:  # `dist-sketch logs` looks there
            for sink in sinks[1:]:
                sink.write(f"error: {e}\n".encode())
                sink.flush()
            raise

    def _run(self, sinks: list[IO[bytes]], more: dict[str, str]) -> int:
        here = read_place(os.environ, self.procs)
        if self.port:
            here = NodePlace(**{**vars(here), "port": self.port})
        if here.node == 0 and here.nodes * here.processes > 1:
            check_port(here.port)
        print(
            f"node {here.node} of {here.nodes}: {socket.gethostname()}, {here.processes} process(es) on "
            f"{'GPUs' if here.gpus else 'CPUs'}, {here.threads} CPU(s) each; they meet at {here.address}:{here.port}",
            flush=True,
        )
        launched = here.nodes * here.processes > 1
        env = variables(here, self.logs, os.environ) | more
        return NodeRanks(command(here, self.command), env, sinks, launcher=launched).wait()


def separate(arguments: list[str]) -> list[str]:
    """Puts the two dashes between our own options and the words that are not ours."""
    own = next((i for i, a in enumerate(arguments) if not a.startswith("-")), len(arguments))
    return [*arguments[:own], "--", *arguments[own:]] if arguments[own:] else arguments


@dataclass(frozen=True, kw_only=True)
class SubmitCommand:
    """Check a job, or a chain of them, and give it to SLURM: dist-sketch submit [OPTIONS] KIND WORDS ...

    KIND is pack, train, infer or experiment. WORDS are those of `sbatch slurm/KIND.sbatch`: options of sbatch, settings
    as name=value, options of the dist-sketch command. Several jobs, each after the one before it has ended well:
    submit chain pack ... then train ... then infer ... ; a later job takes over the paths that earlier ones made.
    """

    words: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="KIND WORDS ...")]]
    """As in: train --nodes=4 --gpus-per-node=8 shards=shards/faces out=runs/faces --train.epochs 200."""
    dry_run: bool = False
    """Print sbatch's commands and the scripts, submit nothing."""
    force: bool = False
    """Submit in spite of what `dist-sketch doctor` finds."""

    def run(self) -> int:
        """Runs the command."""
        found = submit.requests(self.words)
        bad = doctor.report(found)
        if bad and not self.force and not self.dry_run:
            raise UserError(f"{bad} check(s) failed, nothing is submitted; mend that, or give --force before the kind")
        made = submit.jobs(found, write=not self.dry_run)
        if self.dry_run:
            names = [f"<{job.name}>" for job in made]
            print("\n".join(shlex.join(submit.command(job, names)) for job in made))
            for script in dict.fromkeys(request.script for request in found):
                print(f"\n----- {script}\n{script.read_text(encoding='utf-8')}", end="")
            return 2 if bad else 0
        for job, number in zip(made, submit.submit(made), strict=True):
            print(f"{job.name}: job {number}")
        return 0
