"""What a training step costs, and which rank the others wait for."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dist_sketch.core.ranks import Ranks

SLOW = 1.2  # a rank's own time, as a multiple of the median rank's, from which on it is called slow
SLOW_FOR_S = 60.0  # how long it must be so


class Slow(NamedTuple):
    """A rank for which the others wait."""

    rank: int
    host: str
    times: float  # its own time of a step, as a multiple of the median rank's

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} takes {self.times:.2f} times as long as the median rank"


class Speed:
    """Measures what a step costs: time, wait for data and memory, each on the rank where it is highest.

    The ranks' whole times are alike, because they wait for each other. So a rank's own time is that without the waiting
    in the sums over the ranks, which `Ranks` counts. On GPUs the host does not wait there, and all ranks seem alike.
    """

    def __init__(self, ranks: Ranks, step: int):
        self._ranks, self._step, self._clock = ranks, step, time.perf_counter()
        self.waited_s = 0.0  # for data, since the last `take`
        self._summed_s = 0.0  # waited in sums over the ranks before a pause
        self._hosts = ranks.gather(socket.gethostname())
        self._own_s = torch.zeros(ranks.world_size, dtype=torch.float64)  # of each rank, since `_began`
        self._began = self._clock
        self.slow: list[Slow] = []
        """The ranks that were slow over the last whole minute."""

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What this block does is no part of a step: validation, samples, a checkpoint."""
        self._summed_s += self._ranks.take_waited_s()
        began = time.perf_counter()
        yield
        self._ranks.take_waited_s()
        self._clock += time.perf_counter() - began

    def take(self, step: int, batch_size: int) -> dict[str, float]:
        """Measures the steps since the last call; every rank must call it (a small all-reduce).

        Returns:
            Images per second of the run; of the worst rank: seconds per step, share of the time spent waiting for data,
            memory in MB; with several ranks also the slowest one and its own time as a multiple of the median rank's.
        """
        now = time.perf_counter()
        steps, elapsed_s = step - self._step, now - self._clock
        own_s = max(elapsed_s - self._summed_s - self._ranks.take_waited_s(), 0.0)
        own = [elapsed_s / steps, self.waited_s / elapsed_s, memory_mb(self._ranks.device), own_s]
        self._step, self._clock, self.waited_s, self._summed_s = step, now, 0.0, 0.0
        each = torch.zeros(self._ranks.world_size, len(own), dtype=torch.float64)
        each[self._ranks.rank] = torch.tensor(own, dtype=torch.float64)
        found = self._ranks.sum(each)
        step_s, data_wait, memory, _ = found.amax(0).tolist()
        speed = {
            "speed/images_per_s": batch_size / step_s,
            "speed/step_s": step_s,
            "speed/data_wait": data_wait,
            "speed/memory_mb": memory,
        }
        if self._ranks.world_size == 1:
            return speed
        self._own_s += found[:, 3]
        if now - self._began >= SLOW_FOR_S and self._ranks.is_main:
            times = multiples(self._own_s).tolist()
            self.slow = [Slow(r, self._hosts[r], t) for r, t in enumerate(times) if t >= SLOW]
            self._own_s, self._began = torch.zeros_like(self._own_s), now
        now_slowest, rank = multiples(found[:, 3]).max(0)
        return speed | {"speed/slowest_rank": float(rank), "speed/slowest_times": float(now_slowest)}


def multiples(own_s: Tensor) -> Tensor:
    """Each rank's own time (ranks,) as a multiple of the median rank's; of two ranks the quicker one is the median."""
    return own_s / own_s.median().clamp(min=1e-9)


def memory_mb(device: torch.device) -> float:
    """The peak memory of tensors on a GPU; on a CPU this process's current memory (0 where there is no /proc)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
