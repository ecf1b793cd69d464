"""`dist-sketch bench scaling`: several processes beside one, and the cost of communication."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.elastic.utils.distributed import get_free_port

from dist_sketch.bench.measure import BenchReport, Times, cores, in_new_processes, interleaved, rates
from dist_sketch.bench.options import BenchOptions
from dist_sketch.bench.step import LOCKS, Pairs, batch, build, settings, steps_at_once
from dist_sketch.core.precision import resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.training.policy import BOTH, Decision
from dist_sketch.training.step import Step

BUCKET = 25 * 2**20 // 4  # float32 numbers that DDP sends at once
TIMEOUT_S = 3600.0  # the other ranks wait while the first one works alone


def run(report: BenchReport, folder: Path) -> None:
    """Adds all figures of scaling: one process against several."""
    on_gpu = Ranks(expect_world_size=1).device.type == "cuda"
    places = list(range(torch.cuda.device_count())) if on_gpu else cores()[:2]
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
        os.sched_setaffinity(0, [places[rank]])
        torch.set_num_threads(1)
    with Ranks(expect_world_size=len(places), timeout_s=TIMEOUT_S) as ranks:
        count = steps_at_once(options, ranks.device)
        step = build(settings(options.batch_size * len(places)), ranks, resolve_precision("auto", ranks.device))
        pairs = batch(options.batch_size, options.size, ranks.device)
        wrapped, sum_over_ranks = (step.ddp_g, step.ddp_d), ranks.sum
        weights = (sum(p.numel() for p in net.parameters()) for net in (step.g, step.d))
        buckets = [bucket for n in weights for bucket in torch.zeros(n, device=ranks.device).split(BUCKET)]

        def train(lock: Decision, alone: bool) -> None:
            """Takes `count` steps; `alone`: with bare networks, so that nothing is sent."""
            if alone:
                step.ddp_g, step.ddp_d = step.g, step.d
                ranks.sum = lambda values: values  # type: ignore[method-assign]
            for _ in range(count):
                step(*pairs, lock, bad=0, stop=False)
            step.ddp_g, step.ddp_d = wrapped
            ranks.sum = sum_over_ranks  # type: ignore[method-assign]

        def reduce() -> None:
            """Sends what DDP sends in `count` steps that train both networks, in buckets of DDP's size."""
            for _ in range(count):
                for bucket in buckets:
                    dist.all_reduce(bucket)

        variants: dict[str, Callable[[], object]] = {}
        for name, lock in LOCKS.items():
            variants[f"one, {name}"] = partial(train, lock, alone=True) if rank == 0 else lambda: None
            variants[f"all, {name}"] = partial(train, lock, alone=False)
        variants["compute"] = partial(train, BOTH, alone=True)
        variants["all-reduce"] = reduce
        times = interleaved(variants, options, ranks=ranks)
        return {name: [t / count for t in values] for name, values in times.items()}, _sent_bytes(step, pairs)


def _sent_bytes(step: Step, pairs: Pairs) -> dict[str, dict[str, float]]:
    """Bytes that each kind of step hands to all-reduce, by network; DDP keeps the counting hooks for good."""
    sent: dict[str, float] = {}

    def counting(net: str, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        sent[net] += bucket.buffer().nbytes
        return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]

    step.ddp_g.register_comm_hook("G", counting)  # type: ignore[operator]
    step.ddp_d.register_comm_hook("D", counting)  # type: ignore[operator]
    found: dict[str, dict[str, float]] = {}
    for name, lock in LOCKS.items():
        sent = found[name] = {"G": 0.0, "D": 0.0}
        step(*pairs, lock, bad=0, stop=False)
    return found
