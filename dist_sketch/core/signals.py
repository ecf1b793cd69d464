"""Requests to stop: signals, or the clock, set a flag that the training loop reads."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

# A scheduler's, and that of a terminal that hangs up. Not SIGUSR1: it kills accelerate's and torchrun's launcher, and
# NCCL uses it.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopRequest:
    """Whether this process was asked to stop, by a signal or, at the time `ask_at` (s since 1970), by the clock."""

    heard = False  # whether a signal has asked this process, whoever keeps the request

    def __init__(self, ask_at: float = float("inf")) -> None:
        self._asked, self._ask_at = False, ask_at
        self.by_keyboard = False  # Ctrl-C, and no scheduler
        self._numbers: set[signal.Signals] = set()

    @property
    def asked(self) -> bool:
        """Whether a signal or the clock has asked this process to stop."""
        return self._asked or time.time() >= self._ask_at

    def listen(self, *numbers: signal.Signals, orphaned: signal.Signals = signal.SIGKILL) -> None:
        """From now on these signals ask this process to stop.

        Args:
            orphaned: the signal that this process gets if its launcher dies. SIGKILL as long as there is nothing to
                save: ranks that are still looking for each other handle no other signal, and would go on looking for
                half an hour, or join the ranks of the next job.
        """
        for number in numbers:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # else `nohup` started it
                self._numbers.add(number)
                signal.signal(number, self._ask)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            signal_on_parent_death(orphaned)
            if _is_orphan():  # the launcher died before this
                os.kill(os.getpid(), orphaned)

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = StopRequest.heard = True
        self.by_keyboard = number == signal.SIGINT

    def ignore(self) -> None:
        """From now on the signals do nothing: the work is saved, and the process is about to end."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)


def before_job_end(margin_s: float) -> float:
    """The time (s since 1970) at which to stop in a SLURM job: `margin_s` before its end; infinity outside of one.

    This works even if SLURM was not asked to send a signal. The margin is at most a quarter of the time that is left,
    so that a short job does not stop after its first step.
    """
    try:
        end = float(os.environ.get("SLURM_JOB_END_TIME", ""))
    except ValueError:
        return float("inf")
    now = time.time()
    return end - min(margin_s, (end - now) / 4) if end > now else float("inf")


def signal_on_parent_death(number: signal.Signals) -> None:
    """This process gets the signal when its parent dies. Only on Linux; elsewhere nothing happens."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _is_orphan() -> bool:
    """Whether init is the parent of this process, and is not itself the launcher (as it can be in a container)."""
    try:
        return os.getppid() == 1 and os.fsencode(sys.argv[-1]) not in Path("/proc/1/cmdline").read_bytes()
    except OSError:
        return False
