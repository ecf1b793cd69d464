"""Being asked to stop: signals become a flag that the training loop reads, from the first moment of the process on."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

# Not SIGUSR1: it kills accelerate's and torchrun's launcher, and NCCL uses it.
SCHEDULER_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopRequest:
    """Whether this process was asked to stop; twice is the same as once.

    Args:
        ask_at: the time that asks, too, s since 1970.
    """

    def __init__(self, ask_at: float = float("inf")) -> None:
        self._asked, self._ask_at = False, ask_at

    @property
    def asked(self) -> bool:
        """Whether a signal or the clock has asked."""
        return self._asked or time.time() >= self._ask_at

    def listen(self, *numbers: signal.Signals, orphaned: signal.Signals = signal.SIGKILL) -> None:
        """From now on these signals ask.

        Args:
            orphaned: what this process gets when its launcher dies, which would leave its ranks behind. Before there
                is anything to save, SIGKILL: while the ranks look for each other, no other signal is heard, and they
                would look for half an hour - or find those of the next job.
        """
        for number in numbers:
            signal.signal(number, self._ask)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            signal_on_parent_s_death(orphaned)
            if _is_orphan():  # it died before
                os.kill(os.getpid(), orphaned)

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True

    @staticmethod
    def ignore(*numbers: signal.Signals) -> None:
        """From now on these signals do nothing: the work is saved, and the process is about to end."""
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def before_job_s_end(margin_s: float) -> float:
    """The time, s since 1970, to stop at in a SLURM job; infinity if nothing says when it ends.

    Needs no signal: it works where nobody has asked SLURM to send one. A quarter of what is left is the most it takes,
    or a short job would stop after each step.
    """
    try:
        end = float(os.environ.get("SLURM_JOB_END_TIME", ""))
    except ValueError:
        return float("inf")
    now = time.time()
    return end - min(margin_s, (end - now) / 4) if end > now else float("inf")


def signal_on_parent_s_death(number: signal.Signals) -> None:
    """This process gets it when the one that started it dies. Linux; elsewhere nothing happens."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _is_orphan() -> bool:
    """Whether init has taken over this process (and is not itself the launcher, as in a container)."""
    try:
        return os.getppid() == 1 and os.fsencode(sys.argv[-1]) not in Path("/proc/1/cmdline").read_bytes()
    except OSError:
        return False
