"""What a GPU does during a step: the time in which it works, and the number of its kernels."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

COPIES = ("Memcpy", "Memset")  # they keep the device busy, but are no kernels


class Activity(NamedTuple):
    """What the profiler saw of some steps."""

    busy_s: float  # seconds in which at least one kernel or copy ran
    kernels: int


def watch(go: Callable[[], object], device: torch.device) -> Activity:
    """Runs `go` once under the profiler.

    Args:
        device: on a CPU it watches the operators instead of kernels, so that this can be tested without a GPU.
    """
    on_gpu = device.type == "cuda"
    finish: Callable[[], object] = torch.cuda.synchronize if on_gpu else lambda: None
    finish()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        go()
        finish()
    kind = "CUDA" if on_gpu else "CPU"
    # An annotation is a range around kernels, with the gaps between them.
    events = [e for e in seen.events() or () if e.device_type.name == kind and not e.is_user_annotation]
    ranges = ((e.time_range.start, e.time_range.end) for e in events)
    return Activity(covered(ranges) / 1e6, sum(not e.name.startswith(COPIES) for e in events))


def covered(ranges: Iterable[tuple[float, float]]) -> float:
    """The length of the union of (start, end) ranges, which may overlap: kernels run side by side."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(ranges):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def idle_percent(busy_s: float, seconds: list[float]) -> list[float]:
    """The share of each round in which the GPU does nothing, in percent.

    Args:
        busy_s: of as many steps as a round has.
        seconds: of the rounds, measured without the profiler, which makes the host slower but not the kernels.
    """
    return [100 * max(0.0, 1 - busy_s / s) for s in seconds]
