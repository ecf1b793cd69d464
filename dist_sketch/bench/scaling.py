"""`dist-sketch bench scaling`: several processes beside one, the cost of communication, a model of up to 1,024 GPUs."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.nn.parallel import DistributedDataParallel

from dist_sketch.bench.measure import BenchReport, Times, cores, in_new_processes, interleaved, rates
from dist_sketch.bench.options import BenchOptions
from dist_sketch.bench.step import LOCKS, build, random_pairs, settings, steps_at_once
from dist_sketch.core.precision import resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.training.policy import BOTH, Decision
from dist_sketch.training.step import Step

BUCKET = 25 * 2**20  # bytes that DDP sends at once
ENOUGH = 0.9  # efficiency below which the model says what to change
NODE = 8  # GPUs
WORLDS = tuple(2**i for i in range(11))
TIMEOUT_S = 3600.0  # the other ranks wait while the first one works alone


@dataclass(frozen=True)
class Link:
    """What connects GPUs; the numbers are the link's nominal ones, not measured."""

    name: str
    gb_s: float  # in one direction
    latency_s: float  # of one message


NVLINK = Link("NVLink in a node", 450.0, 3e-6)
LINKS = (Link("400 Gb/s InfiniBand a node", 50.0, 5e-6), Link("100 Gb/s Ethernet a node", 12.5, 3e-5))
FORMULA = (
    "t(N) = max(c, (1 - h) c + a(N)); all-reduce a(N) = 2 (N-1)/N * bytes / bandwidth + 2 (N-1) * latency, a ring; "
    f"above {NODE} GPUs a ring inside each node, then one over the nodes; c = step time of one GPU, h = share of c "
    "that hides the all-reduce; efficiency = c / t(N)"
)


def run(report: BenchReport, folder: Path) -> None:
    """Adds all figures of scaling."""
    ranks = Ranks(expect_world_size=1)
    on_gpu = ranks.device.type == "cuda"
    places = list(range(torch.cuda.device_count())) if on_gpu else cores()[:2]
    hidden = 0.0
    if len(places) > 1:
        hidden = _measure(report, places, on_gpu)
    else:
        report.note("not measured: one process against several needs two GPUs, or two cores")
    _model(report, ranks, hidden)


def _measure(report: BenchReport, places: list[int], on_gpu: bool) -> float:
    """Compares one process with several. Returns the share of a step that hides communication."""
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
    for name, ours, baseline, baseline_name in (
        ("compute, all at once", compute, one, f"step of one process on one {place}"),
        ("communication that does not hide, and waiting", exposed, send, "all-reduce of the same bytes alone"),
    ):
        report.add(name, ours, baseline, "ms/step", baseline_name, lower_is_better=True)
    for lock in ("D locked", "G locked"):
        name, net = f"bytes of {lock[0]} reduced a step, {lock}", lock[0]
        report.add(name, sent[lock][net], sent["both train"][net], "bytes", "both train", lower_is_better=True)
    t1, tn, c, a = (median(v) for v in (one, every, compute, send))
    hidden = min(a, max(0.0, a - (tn - c)))
    report.note(
        f"the first ratio is the efficiency: {t1:.0f} of {tn:.0f} ms; {max(0.0, c - t1):.0f} ms because {n} compute at "
        f"once (memory, clock), {max(0.0, tn - c):.0f} ms of communication that does not hide and of waiting for the "
        f"slowest; all-reduce alone takes {a:.0f} ms for {sum(sent['both train'].values()) / 1e6:.1f} MB, of which "
        f"{hidden:.0f} ms hide"
    )
    return hidden / c


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
        line, sketch = random_pairs(options, ranks.device)
        wrapped, sum_over_ranks = (step.ddp_g, step.ddp_d), ranks.sum
        gradients = [torch.zeros(_gradient_bytes(net) // 4, device=ranks.device) for net in (step.g, step.d)]
        buckets = [bucket for gradient in gradients for bucket in gradient.split(BUCKET // 4)]

        def train(lock: Decision, alone: bool) -> None:
            """Takes `count` steps; `alone`: with bare networks, so that nothing is sent."""
            if alone:
                step.ddp_g, step.ddp_d = step.g, step.d
                ranks.sum = lambda values: values  # type: ignore[method-assign]
            for _ in range(count):
                step(line, sketch, lock, bad=0, stop=False)
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
        return {name: [t / count for t in values] for name, values in times.items()}, _sent_bytes(step, line, sketch)


def _gradient_bytes(net: nn.Module) -> int:
    return 4 * sum(p.numel() for p in net.parameters())


def _sent_bytes(step: Step, line: Tensor, sketch: Tensor) -> dict[str, dict[str, float]]:
    """Bytes that each kind of step hands to all-reduce, by network; DDP keeps the counting hooks for good."""
    sent: dict[str, float] = {}

    def counting(net: str) -> Any:
        def hook(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
            sent[net] += bucket.buffer().nbytes
            return allreduce_hook(group, bucket)

        return hook

    for net, wrapped in (("G", step.ddp_g), ("D", step.ddp_d)):
        assert isinstance(wrapped, DistributedDataParallel)
        wrapped.register_comm_hook(dist.group.WORLD, counting(net))
    found = {}
    for name, lock in LOCKS.items():
        sent = {"G": 0.0, "D": 0.0}
        step(line, sketch, lock, bad=0, stop=False)
        found[name] = sent
    return found


def ring(count: int, size: float, link: Link) -> float:
    """Seconds of a ring all-reduce of `size` bytes over `count` members."""
    return 2 * (count - 1) / count * size / (link.gb_s * 1e9) + 2 * (count - 1) * link.latency_s


def all_reduce(world: int, size: float, link: Link) -> float:
    """Seconds of an all-reduce over `world` GPUs: a ring in each node, then one over the nodes."""
    return ring(min(world, NODE), size, NVLINK) + ring(math.ceil(world / NODE), size, link)


def step_time(compute: float, communication: float, hidden: float) -> float:
    """Seconds of a step, of which the share `hidden` can run at the same time as communication."""
    return max(compute, (1 - hidden) * compute + communication)


def _model(report: BenchReport, ranks: Ranks, hidden: float) -> None:
    """Computes speeds on paper from the step time of one device and the bytes that a step sends."""
    options = report.options
    step = build(settings(options.batch_size), ranks, resolve_precision("auto", ranks.device))
    line, sketch = random_pairs(options, ranks.device)
    size_g, size_d = _gradient_bytes(step.g), _gradient_bytes(step.d)
    compute, source = options.step_ms / 1e3, "--step-ms"
    if not compute:
        count = steps_at_once(options, ranks.device)
        go = {"step": lambda: [step(line, sketch, BOTH, bad=0, stop=False) for _ in range(count)]}
        compute = median(interleaved(go, options)["step"]) / count
        source = "measured here" if ranks.device.type == "cuda" else "measured here on CPUs; for a GPU give --step-ms"
    about = "; ".join(f"{k.name}: {k.gb_s:g} GB/s, {1e6 * k.latency_s:g} us" for k in (NVLINK, *LINKS))
    report.note(f"on paper, not measured: {FORMULA}")
    report.note(
        f"c = {1e3 * compute:.1f} ms a step of {options.batch_size} pairs ({source}); {(size_g + size_d) / 1e6:.1f} MB "
        f"a step ({size_g / 1e6:.1f} with D locked); h = {hidden:.2f}; {about}"
    )
    for link in LINKS:
        times = {world: step_time(compute, all_reduce(world, size_g + size_d, link), hidden) for world in WORLDS}
        for world, seconds in times.items():
            speed, ideal = (world * options.batch_size / t for t in (seconds, compute))
            name = f"on paper: {world:,} GPU(s), {link.name}"
            report.add(name, speed, ideal, "images/s", f"{world:,} x one GPU")
        report.note(_advice(link, times, compute, size_g + size_d, hidden, options.batch_size))


def _advice(link: Link, times: dict[int, float], compute: float, size: float, hidden: float, batch_size: int) -> str:
    """Says from how many GPUs on the efficiency is below `ENOUGH`, and which batch size would keep it up."""
    low = next((world for world, t in times.items() if compute / t < ENOUGH), None)
    largest = max(times)
    if low is None:
        return f"{link.name}: efficiency stays at {ENOUGH} or more up to {largest:,} GPUs"
    needed = all_reduce(largest, size, link) / (1 / ENOUGH - 1 + hidden)  # seconds of a step
    larger = math.ceil(batch_size * needed / compute)
    return (
        f"{link.name}: below {ENOUGH} from {low:,} GPUs on; {larger} pairs a GPU and step instead of {batch_size} (or "
        f"as many in parts: train.accumulate) keep it up to {largest:,}: a longer step sends the same bytes"
    )
