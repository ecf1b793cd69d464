"""Being asked to stop: signals become a flag that the training loop reads, from the first moment of the process on."""

import ctypes
import os
import signal
from typing import Any

# Not SIGUSR1: it kills accelerate's and torchrun's launcher, and NCCL uses it.
SCHEDULER_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopRequest:
    """Whether this process was asked to stop; twice is the same as once."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self, *numbers: signal.Signals) -> None:
        """From now on these signals ask. So does the death of a launcher, which would leave its ranks behind."""
        for number in numbers:
            signal.signal(number, self._ask)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            _signal_on_parent_s_death(signal.SIGTERM)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True

    @staticmethod
    def ignore(*numbers: signal.Signals) -> None:
        """From now on these signals do nothing: the work is saved, and the process is about to end."""
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def _signal_on_parent_s_death(number: signal.Signals) -> None:
    """Linux; elsewhere nothing happens."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


stop = StopRequest()  # of this process: signals know no other
