"""The processor cores that this process may use."""

import os


def usable() -> list[int]:
    """Their numbers: on Linux those that a scheduler or a container allows, elsewhere all cores of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
