"""`dist-sketch leg`: the heart of a SLURM job that trains. It runs the job's step and decides what comes next.

It takes the place of the batch script's shell (`exec`), so that SLURM's signals come to it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dist_sketch.core.errors import UserError

NOT_FINISHED = os.EX_TEMPFAIL  # exit code: no job that depends on this one may start


REPEAT_S = 3.0  # between two USR2: the ranks may be just starting, and not listen yet


REQUEUED_S = 600.0  # in which SLURM ends a job that asked to be requeued


CANCELLED_S = 2.0  # within which SLURM's signal reaches this process after the step


class JobSteps:
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

    def run(self, command: list[str], *, saves: bool = True) -> int:
        """Runs a command to its end; returns its exit code.

        Args:
            saves: it listens to the warning; else it is ended by it.

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
                step.send_signal(signal.SIGUSR2 if saves else signal.SIGTERM)

    def wait_for_the_end(self, most_s: float) -> None:
        """Waits until SLURM ends this process."""
        until = time.monotonic() + most_s
        while not self.ended and time.monotonic() < until:
            time.sleep(0.2)


def _ignore_warning() -> None:
    """Until srun listens, the signal must not end it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def name(env: Mapping[str, str]) -> str:
    """What scontrol calls this job. An array's last task has the array's own id: that means all of its tasks."""
    array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else env.get("SLURM_JOB_ID", "0")


def check_gpus(env: Mapping[str, str]) -> None:
    """Refuses GPUs that were not asked for by --gpus-per-node: the job's steps would see one of them.

    Raises:
        UserError: with what to say instead.
    """
    here, asked = env.get("SLURM_GPUS_ON_NODE", ""), env.get("SLURM_GPUS_PER_NODE", "").rpartition(":")[2]
    if here.isdigit() and asked.isdigit() and here != asked:
        raise UserError(
            f"this node gives the job {here} GPU(s), but its steps {asked}: ask for them by "
            f"--gpus-per-node={here}, not by --gres or --gpus"
        )


def end_of(job: str) -> str:
    """When SLURM will end the job, s since 1970; "" if it does not say."""
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%e"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SLURM_TIME_FORMAT": "%s"})
    except OSError:
        return ""
    return done.stdout.strip() if done.stdout.strip().isdigit() else ""


def scontrol(*words: str) -> bool:
    """Whether scontrol did it."""
    try:
        return subprocess.run(["scontrol", *words]).returncode == 0
    except OSError as e:
        print(f"scontrol: cannot be started ({e.strerror})", file=sys.stderr)
        return False
