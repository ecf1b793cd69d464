"""`dist-sketch bench scaling`: several processes beside one, and the cost of communication."""

import copy
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.utils.distributed import get_free_port

from dist_sketch.bench.measure import BenchReport, Times, in_new_processes, interleaved, rates
from dist_sketch.bench.options import BenchOptions
from dist_sketch.bench.step import LOCKS, Pairs, batch, build, repeated, settings, steps_at_once
from dist_sketch.core import cpus
from dist_sketch.core.precision import resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.training.policy import BOTH
from dist_sketch.training.step import Step

TIMEOUT_S = 3600.0  # the other ranks wait while the first one works alone


def run(report: BenchReport, folder: Path) -> None:
    """Adds all figures of scaling: one process against several."""
    on_gpu = Ranks(expect_world_size=1).device.type == "cuda"
    places = list(range(torch.cuda.device_count())) if on_gpu else cpus.usable()[:2]
    if len(places) < 2:
        report.note("not measured: one process against several needs two GPUs, or two cores")
        return
    options, n, place = report.options, len(places), "GPU" if on_gpu else "core"
    member = partial(_member, places=places, on_gpu=on_gpu, port=get_free_port(), options=options)
    found = in_new_processes(member, range(n))
    by_rank, sent = [times for times, _ in found], found[0][1]
    # a step takes as long as its slowest rank
    times = {name: [max(t) for t in zip(*(rank[name] for rank in by_rank), strict=True)] for name in by_rank[0]}
    for lock in LOCKS:
        ours, baseline = (rates(times[f"{who}, {lock}"], n * options.batch_size) for who in ("all", "one"))
        name = f"{n} processes, one {place} each, {lock}"
        report.add(name, ours, baseline, "images/s", f"{n} x one process on one {place}")
    one, every, compute, send = (
        [1e3 * t for t in times[name]] for name in ("one, both train", "all, both train", "compute", "all-reduce")
    )
    exposed = [max(0.0, a - c) for a, c in zip(every, compute, strict=True)]
    report.add("compute, all at once", compute, one, "ms/step", f"step of one process on one {place}")
    name, about = "communication that does not hide, and waiting", "all-reduce of the same bytes alone"
    report.add(name, exposed, send, "ms/step", about)
    for net in ("D", "G"):
        locked, both = [sent[f"{net} locked"][net]], [sent["both train"][net]]
        report.add(f"bytes of {net} reduced a step, {net} locked", locked, both, "bytes", "both train")
    megabytes = sum(sent["both train"].values()) / 1e6
    report.note(f"the first ratio is the efficiency; a step in which both train sends {megabytes:.1f} MB")


def _member(
    rank: int, *, places: list[int], on_gpu: bool, port: int, options: BenchOptions
) -> tuple[Times, dict[str, dict[str, float]]]:
    """One of the processes: seconds of a step in each variant and round, and bytes sent in each kind of step."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(len(places)), "LOCAL_RANK": str(rank if on_gpu else 0)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if not on_gpu:
        os.environ |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        if hasattr(os, "sched_setaffinity"):  # macOS has none
            os.sched_setaffinity(0, [places[rank]])
        torch.set_num_threads(1)
    with Ranks(expect_world_size=len(places), timeout_s=TIMEOUT_S) as ranks:
        count, precision = steps_at_once(options, ranks.device), resolve_precision("auto", ranks.device)
        one = copy.copy(ranks)
        one.world_size = 1  # this process without its peers: it sends nothing
        whole = settings(options.batch_size * len(places))
        alone, together = build(settings(options.batch_size), one, precision), build(whole, ranks, precision)
        pairs = batch(options.batch_size, options.size, ranks.device)
        sent = _sent_bytes(build(whole, ranks, precision, capture=False), pairs)
        flat = [learner.gradients.flat for learner in (together.learner_g, together.learner_d)]
        buffers = [torch.zeros_like(b) for b in flat if b is not None]

        def reduce() -> None:
            """Sends what `count` steps send that train both networks."""
            for _ in range(count):
                for buffer in buffers:
                    dist.all_reduce(buffer, group=ranks.group_of(buffer))

        variants: dict[str, Callable[[], object]] = {}
        for name, lock in LOCKS.items():
            variants[f"one, {name}"] = repeated(alone, pairs, lock, count) if rank == 0 else lambda: None
            variants[f"all, {name}"] = repeated(together, pairs, lock, count)
        variants["compute"] = repeated(alone, pairs, BOTH, count)
        variants["all-reduce"] = reduce
        times = interleaved(variants, options, ranks=ranks)
        return {name: [t / count for t in values] for name, values in times.items()}, sent


def _sent_bytes(step: Step, pairs: Pairs) -> dict[str, dict[str, float]]:
    """Bytes of gradients that an eager step sends, by kind of step and network; `step` counts them from now on."""
    sent: dict[str, float] = {}

    def counted(net: str, average: Callable[[], None], nbytes: int) -> None:
        sent[net] += nbytes
        average()

    for net, learner in {"G": step.learner_g, "D": step.learner_d}.items():
        flat = learner.gradients
        flat.average = partial(counted, net, flat.average, flat.nbytes)  # type: ignore[method-assign]
    found: dict[str, dict[str, float]] = {}
    for name, lock in LOCKS.items():
        sent = found[name] = {"G": 0.0, "D": 0.0}
        step(*pairs, lock, bad=0, stop=False)
    return found
