"""`dist-sketch leg`: the heart of a SLURM job that trains. It runs the job's step and decides what comes next.

It takes the place of the batch script's shell (`exec`), so that SLURM's signals come to it.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from dist_sketch import logs
from dist_sketch.after import settle
from dist_sketch.errors import UserError

NOT_FINISHED = os.EX_TEMPFAIL  # exit code: no job that depends on this one may start
REPEAT_S = 3.0  # between two USR2: the ranks may be just starting, and not listen yet
REQUEUED_S = 600.0  # in which SLURM ends a job that asked to be requeued


class Steps:
    """Runs the steps of a job; SLURM's warning (USR2) goes to the one that runs, until it ends."""

    def __init__(self) -> None:
        self.warned = False  # the job's end is near: save
        self.ended = False  # scancel, preemption, or the end itself
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGUSR2, self._warn)

    def _warn(self, number: int, frame: Any) -> None:
        self.warned = True

    def _end(self, number: int, frame: Any) -> None:
        self.ended = True  # SLURM tells the step by itself

    def run(self, command: list[str]) -> int:
        """Runs a command to its end; returns its exit code.

        Raises:
            UserError: there is no such program.
        """
        try:
            step = subprocess.Popen(command, preexec_fn=_ignore_warning)
        except OSError as e:
            raise UserError(f"{command[0]}: cannot be started ({e.strerror})") from e
        while True:
            with suppress(subprocess.TimeoutExpired):
                code = step.wait(0.2 if not self.warned else REPEAT_S)
                return code if code >= 0 else 128 - code
            if self.warned:
                step.send_signal(signal.SIGUSR2)

    def wait_for_the_end(self) -> None:
        """Waits until SLURM ends this process."""
        until = time.monotonic() + REQUEUED_S
        while not self.ended and time.monotonic() < until:
            time.sleep(0.2)


def _ignore_warning() -> None:
    """Until srun listens, the signal must not end it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


@dataclass(frozen=True, kw_only=True)
class Leg:
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
        job, number = (os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"))
        leg, nodes = f"=== job {job} leg {number}", os.environ.get("SLURM_JOB_NODELIST", "no node")
        print(f"{leg}: {nodes}, {time.strftime('%Y-%m-%d %H:%M:%S')} ===", flush=True)
        began, steps = time.time(), Steps()
        code = steps.run(list(self.command))
        if steps.ended:
            return _ended()
        warned = steps.warned
        word, why = settle(self.folder, code=code, since=began, warned=warned, most_requeues=self.requeues)
        if word == "done" and self.then:
            code = steps.run(shlex.split(self.then))
            if steps.ended:
                return _ended()
            if code:
                again = steps.warned and int(number) < self.requeues
                word, why = ("requeue" if again else "stop"), f"{why}, but its second step ended with {code}"
        print(f"{leg}: {word} {why} ===", flush=True)
        if word == "done":
            return 0
        if word == "requeue" and subprocess.run(["scontrol", "requeue", job]).returncode == 0:
            steps.wait_for_the_end()
        if not steps.ended:
            print(logs.describe(self.folder), file=sys.stderr)
        return NOT_FINISHED


def _ended() -> int:
    """After scancel nothing more is wanted; after preemption SLURM requeues by itself."""
    print("=== ended by SLURM ===", flush=True)
    return 128 + signal.SIGTERM
