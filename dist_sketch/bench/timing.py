"""Measuring: alternated timings, figures beside their baselines, what machine this is, tables and JSON."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import Any

from dist_sketch.bench.options import BenchOptions

Variants = Mapping[str, Callable[[], object]]


Times = dict[str, list[float]]  # seconds of each round, by variant


def rates(times: list[float], work: float) -> list[float]:
    """Seconds of each round -> work a second."""
    return [work / t for t in times]


def synchronize() -> None:
    """Waits until the GPU, if there is one, has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(
    variants: Variants, options: BenchOptions, *, warm: int = 1, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Runs all variants in turn, round after round, so that what disturbs the machine disturbs all of them.

    Args:
        warm: rounds before the first that counts: caches, lazy initialization, autotuning.
        clock: `time.process_time` counts this process's CPU seconds alone, on all cores.
    """
    times: Times = {name: [] for name in variants}
    started = time.monotonic()
    for turn in range(-warm, options.repeats):
        for name, variant in variants.items():
            synchronize()
            since = clock()
            variant()
            synchronize()
            if turn >= 0:
                times[name].append(clock() - since)
        if turn >= 0 and time.monotonic() - started > options.budget_s:
            break
    return times


def processes() -> BaseContext:
    """How the bench starts processes: each a fork of one that has imported torch and done nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload([f"dist_sketch.bench.{name}" for name in ("step", "loader", "scaling")])
    return context


def alone(function: Callable[[Any], Any], values: list[Any]) -> list[Any]:
    """`function` of each value, each in a new process, all at the same time."""
    with ProcessPoolExecutor(len(values), mp_context=processes(), max_tasks_per_child=1) as pool:
        return list(pool.map(function, values))
