"""`dist-sketch leg`: runs one attempt of a training job, then finishes the job, requeues it, or stops it.

The batch script replaces itself with this process (`exec`), so that it receives SLURM's signals.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_sketch.core.errors import UserError
from dist_sketch.core.saved import read_status
from dist_sketch.slurm.numbers import number
from dist_sketch.slurm.rank_logs import describe
from dist_sketch.slurm.requeue_policy import attempt_end, record, record_lost, settle

NOT_FINISHED = os.EX_TEMPFAIL  # exit code: jobs that depend on this one must not start
REPEAT_S = 3.0  # the warning is repeated, because ranks that are still starting miss it
REQUEUE_S = 600.0  # SLURM ends a job within this time after its requeue
CANCEL_S = 2.0  # after scancel, SLURM's signal may arrive here this much later than at the step


def run_attempt(run: Path, command: list[str], *, then: str, most_requeues: int) -> int:
    """Runs the step of a job (and `then`, if the run is finished), does what comes next; returns the job's exit code.

    Raises:
        UserError: the step cannot be started, or its end cannot be recorded.
    """
    check_gpus(os.environ)
    before, steps = read_status(run), StepRunner()
    job, leg = job_name(os.environ), number("SLURM_RESTART_COUNT", os.environ.get("SLURM_RESTART_COUNT") or "0")
    title, nodes = f"=== job {job} leg {leg}", os.environ.get("SLURM_JOB_NODELIST", "no node")
    print(f"{title}: {nodes}, {time.strftime('%Y-%m-%d %H:%M:%S')} ===", flush=True)
    known, end_time = ask_slurm("squeue", "--noheader", f"--jobs={job}", "--format=%e")
    if known and end_time.isdigit():
        os.environ["SLURM_JOB_END_TIME"] = end_time  # the run stops in time even if it gets no signal
    with suppress(UserError):  # a record for the reader of the logs only
        record_lost(run)
    code = steps.run(command)
    end = attempt_end(run, code=code, before=before, warned=steps.warned)
    if not steps.ended:
        decision, why = settle(run, end, most_requeues)
        if decision == "done" and then:
            second = None if steps.warned else steps.run(shlex.split(then), saves=False)
            if second != 0 and steps.warned:  # the next attempt runs it again
                decision = "requeue" if leg < most_requeues else "stop"
                why += "; the second step has not finished"
            elif second:
                decision, why = "stop", f"{why}, but its second step ended with exit code {second}"
        if decision == "requeue":
            steps.wait_for_the_end(CANCEL_S)
    if steps.ended:  # a cancelled job must not come back; SLURM itself requeues a preempted one
        print("=== ended by SLURM ===", flush=True)
        with suppress(UserError):
            record(run, end, "ended", "by SLURM: cancelled, preempted, or out of time")
        return 128 + signal.SIGTERM
    print(f"{title}: {decision}: {why} ===", flush=True)
    if decision == "done":
        return 0
    if decision == "requeue":
        accepted, message = ask_slurm("scontrol", "requeue", job)
        if accepted:
            steps.wait_for_the_end(REQUEUE_S)
        else:
            print(message, file=sys.stderr)
    if not steps.ended:
        print(describe(run), file=sys.stderr)
    return NOT_FINISHED


class StepRunner:
    """Runs the job's steps, and passes SLURM's warning (USR2) on to the running step."""

    def __init__(self) -> None:
        self.warned = False  # the end is near: save
        self.ended = False  # the job was cancelled or preempted, or is out of time; SLURM signals the step itself
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGUSR2, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.warned |= number == signal.SIGUSR2
        self.ended |= number == signal.SIGTERM

    def run(self, command: list[str], *, saves: bool = True) -> int:
        """Runs a step to its end; returns its exit code. A step that does not save is ended when it is warned.

        Raises:
            UserError: there is no such program.
        """

        def ignore_warning() -> None:  # or USR2 would kill srun before it has set its handler
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)

        try:
            step = subprocess.Popen(command, preexec_fn=ignore_warning)
        except OSError as e:
            raise UserError(f"{command[0]}: cannot be started ({e.strerror})") from e
        while True:
            with suppress(subprocess.TimeoutExpired):
                code = step.wait(0.2 if not self.warned else REPEAT_S)
                return code if code >= 0 else 128 - code
            if self.warned:
                step.send_signal(signal.SIGUSR2 if saves else signal.SIGTERM)

    def wait_for_the_end(self, timeout_s: float) -> None:
        """Waits until SLURM ends this process."""
        until = time.monotonic() + timeout_s
        while not self.ended and time.monotonic() < until:
            time.sleep(0.2)


def job_name(env: Mapping[str, str]) -> str:
    """What scontrol calls this job. For the last task of an array SLURM_JOB_ID would mean the whole array."""
    array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else env.get("SLURM_JOB_ID", "0")


def check_gpus(env: Mapping[str, str]) -> None:
    """Refuses GPUs that were requested by another option than --gpus-per-node: the steps would see only one of them.

    Raises:
        UserError: names the right option.
    """
    given, asked = env.get("SLURM_GPUS_ON_NODE", ""), env.get("SLURM_GPUS_PER_NODE", "").rpartition(":")[2]
    if given.isdigit() and asked.isdigit() and given != asked:
        raise UserError(
            f"this node gives the job {given} GPU(s), but its steps only {asked}: request them by "
            f"--gpus-per-node={given}, not by --gres or --gpus"
        )


def ask_slurm(*command: str) -> tuple[bool, str]:
    """Runs a command of SLURM, with times in s since 1970; returns whether it succeeded, and its output or error."""
    try:
        env = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
    except OSError as e:
        return False, f"{command[0]}: cannot be started ({e.strerror})"
    return done.returncode == 0, (done.stdout or done.stderr).strip()
