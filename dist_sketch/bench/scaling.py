"""`dist-sketch bench scaling`: two processes beside one, what that costs and why; then a model on paper up to 1,024."""

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from dist_sketch.bench.figures import BenchReport, figure
from dist_sketch.bench.machine import cores
from dist_sketch.bench.options import BenchOptions
from dist_sketch.bench.step import LOCKS, build, settings, steps_at_once
from dist_sketch.bench.timing import interleaved, processes, rates, synchronize
from dist_sketch.core.precision import resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.training.step import NAMES, Step

NAME = "scaling"


BUCKET = 25 * 2**20  # bytes that DDP sends at once


ENOUGH = 0.9  # efficiency below which the model says what to change


NODE = 8  # GPUs


WORLDS = tuple(2**i for i in range(11))


@dataclass(frozen=True)
class Link:
    """What connects GPUs; the figures are the links' own, not measured."""

    name: str
    gb_s: float  # in one direction
    latency_s: float  # of one message


NVLINK = Link("NVLink in a node", 450.0, 3e-6)


LINKS = (Link("400 Gb/s InfiniBand a node", 50.0, 5e-6), Link("100 Gb/s Ethernet a node", 12.5, 3e-5))


FORMULA = (
    "t(N) = max(c, (1 - h) c + a(N)); all-reduce a(N) = 2 (N-1)/N * bytes / bandwidth + 2 (N-1) * latency, a ring; "
    f"above {NODE} GPUs a ring inside each node, then one over the nodes; c = step time of one GPU, h = share of c "
    "behind which the all-reduce hides; efficiency = c / t(N)"
)


def run(report: BenchReport, folder: Path) -> None:
    """All figures of scaling."""
    ranks = Ranks(expect_world_size=1)
    gpus = torch.cuda.device_count() if ranks.device.type == "cuda" else 0
    places = list(range(gpus)) if gpus else cores()[:2]
    hidden = 0.0
    if len(places) > 1:
        hidden = _measure(report, places, on_gpu=gpus > 0)
    else:
        report.note(NAME, "not measured: one process against several needs two GPUs, or two cores")
    _model(report, ranks, hidden)


# ---------------------------------------------------------------- processes that step when they are told to


class Group:
    """Processes that work together, one a core or a GPU, and wait for orders."""

    def __init__(self, places: list[int], options: BenchOptions, on_gpu: bool):
        from torch.distributed.elastic.utils.distributed import get_free_port

        context: Any = processes()
        self._pipes, self._processes = [], []
        common = {"WORLD_SIZE": str(len(places)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port())}
        for rank, place in enumerate(places):
            mine, theirs = context.Pipe()
            env = common | {"RANK": str(rank), "LOCAL_RANK": str(rank if on_gpu else 0)}
            env |= {} if on_gpu else {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            process = context.Process(target=_member, args=(theirs, env, None if on_gpu else place, options))
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)

    def order(self, what: str) -> list[Any]:
        """All members do `what`; their answers, in order of rank."""
        try:
            for pipe in self._pipes:
                pipe.send(what)
            return [pipe.recv() for pipe in self._pipes]
        except (EOFError, OSError) as e:
            raise RuntimeError(f"a process of the bench ended during {what!r}: its traceback stands above") from e

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            process.kill()


def _member(pipe: Connection, env: dict[str, str], core: int | None, options: BenchOptions) -> None:
    """One process of a group: answers orders until the pipe closes."""
    os.environ.update(env)
    if core is not None:
        os.sched_setaffinity(0, [core])
        torch.set_num_threads(1)
    with Ranks(expect_world_size=int(env["WORLD_SIZE"]), timeout_s=600) as ranks, suppress(EOFError):
        member = Member(ranks, options)
        while True:
            pipe.send(member.do(pipe.recv()))


class Member:
    """What a process of a group can do."""

    def __init__(self, ranks: Ranks, options: BenchOptions):
        self.ranks, self.count = ranks, steps_at_once(options, ranks.device)
        config = settings(options.batch_size * ranks.world_size)
        self.step = build(config, ranks, resolve_precision("auto", ranks.device))
        shape = (options.batch_size, 3, options.size, options.size)
        self.line, self.sketch = (torch.rand(shape, device=ranks.device) * 2 - 1 for _ in range(2))
        self.wrapped = self.step.ddp_g, self.step.ddp_d
        self.buckets = [torch.zeros(n // 4, device=ranks.device) for n in _buckets(self.step)]

    def do(self, what: str) -> Any:
        """Obeys an order: a name of `LOCKS`, "compute", "all-reduce" or "bytes"."""
        self.ranks.wait()
        if what == "bytes":
            return self._bytes()
        go: Callable[[], None] = self._reduce if what == "all-reduce" else lambda: self._steps(what)
        synchronize()
        since = time.perf_counter()
        go()
        synchronize()
        return (time.perf_counter() - since) / self.count

    def _steps(self, what: str) -> None:
        """`count` steps; "compute": bare networks, so that nothing is sent."""
        alone = what == "compute"
        plain: Any = self.ranks.sum
        if alone:
            self.step.ddp_g, self.step.ddp_d = self.step.g, self.step.d
            self.ranks.sum = lambda values: values  # type: ignore[method-assign]
        try:
            for _ in range(self.count):
                self.step(self.line, self.sketch, LOCKS["both" if alone else what], bad=0, stop=False)
        finally:
            self.step.ddp_g, self.step.ddp_d = self.wrapped
            self.ranks.sum = plain  # type: ignore[method-assign]

    def _reduce(self) -> None:
        for _ in range(self.count):
            for bucket in self.buckets:
                dist.all_reduce(bucket)

    def _bytes(self) -> dict[str, dict[str, int]]:
        """Bytes that each kind of step hands to all-reduce, by network; the last order that a member can have."""
        sent = {"g": 0, "d": 0}

        def count(name: str) -> Any:
            def hook(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
                sent[name] += bucket.buffer().numel() * bucket.buffer().element_size()
                return allreduce_hook(group, bucket)

            return hook

        for name, net in zip("gd", self.wrapped, strict=True):
            if isinstance(net, DistributedDataParallel):
                net.register_comm_hook(dist.group.WORLD, count(name))
        found = {}
        for what, lock in LOCKS.items():
            sent.update(g=0, d=0)
            self.step(self.line, self.sketch, lock, bad=0, stop=False)
            found[what] = dict(sent) | {"losses": 8 * len(NAMES)}
        return found


def _buckets(step: Step) -> list[int]:
    """Bytes of what DDP sends in a step that trains both networks, cut as DDP cuts them."""
    sizes = []
    for net in (step.g, step.d):
        total = _gradients(net)
        sizes += [min(BUCKET, total - i) for i in range(0, total, BUCKET)]
    return sizes


def _gradients(net: nn.Module) -> int:
    return 4 * sum(p.numel() for p in net.parameters())


# ---------------------------------------------------------------- figures


def _measure(report: BenchReport, places: list[int], on_gpu: bool) -> float:
    """One process against several, in turn. Returns the share of a step behind which communication hides."""
    options, n = report.options, len(places)
    with Group(places[:1], options, on_gpu) as one, Group(places, options, on_gpu) as many:
        seconds: dict[str, list[float]] = {}

        def ask(name: str, group: Group, what: str) -> Callable[[], object]:
            seconds[name] = []
            # all wait for the slowest: the step's time is the longest
            return lambda: seconds[name].append(max(group.order(what)))

        variants = {f"one {lock}": ask(f"one {lock}", one, lock) for lock in LOCKS}
        variants |= {f"all {lock}": ask(f"all {lock}", many, lock) for lock in LOCKS}
        variants["compute"] = ask("compute", many, "compute")
        variants["all-reduce"] = ask("all-reduce", many, "all-reduce")
        rounds = len(interleaved(variants, options)["compute"])
        times = {name: values[-rounds:] for name, values in seconds.items()}  # without the warm-up
        sent = many.order("bytes")[0]
    place = "GPU" if on_gpu else "core"
    work = options.batch_size
    for lock in LOCKS:
        trains = "both train" if lock == "both" else lock
        one_speed, all_speed = rates(times[f"one {lock}"], n * work), rates(times[f"all {lock}"], n * work)
        report.add(
            figure(
                NAME,
                f"{n} processes, one {place} each, {trains}",
                all_speed,
                one_speed,
                unit="images/s",
                baseline_name=f"{n} x one process on one {place}",
            )
        )
    one_ms, all_ms, compute, send = (
        [1e3 * t for t in times[k]] for k in ("one both", "all both", "compute", "all-reduce")
    )
    exposed = [max(0.0, a - c) for a, c in zip(all_ms, compute, strict=True)]
    gone = f"step of one process on one {place}"
    report.add(
        figure(NAME, "compute, all at once", compute, one_ms, unit="ms/step", baseline_name=gone, lower_is_better=True),
        figure(
            NAME,
            "communication that does not hide, and waiting",
            exposed,
            send,
            unit="ms/step",
            baseline_name="all-reduce of the same bytes alone",
            lower_is_better=True,
        ),
    )
    for lock in ("D locked", "G locked"):
        net = lock[0].lower()
        report.add(
            figure(
                NAME,
                f"bytes of {lock[0]} reduced a step, {lock}",
                float(sent[lock][net]),
                float(sent["both"][net]),
                unit="bytes",
                baseline_name="both train",
                lower_is_better=True,
            )
        )
    t1, tn, c, a = (median(v) for v in (one_ms, all_ms, compute, send))
    hidden = min(a, max(0.0, a - (tn - c)))
    sent_mb = (sent["both"]["g"] + sent["both"]["d"]) / 1e6
    report.note(
        NAME,
        f"the first ratio is the efficiency: {t1:.0f} of {tn:.0f} ms; {max(0.0, c - t1):.0f} ms because {n} compute at "
        f"once (memory, clock), {max(0.0, tn - c):.0f} ms of communication that does not hide and of waiting for the "
        f"slowest; all-reduce alone takes {a:.0f} ms for {sent_mb:.1f} MB, of which {hidden:.0f} ms hide",
    )
    return hidden / c


def ring(count: int, size: float, link: Link) -> float:
    """Seconds of a ring all-reduce of `size` bytes over `count` members."""
    return 2 * (count - 1) / count * size / (link.gb_s * 1e9) + 2 * (count - 1) * link.latency_s


def all_reduce(world: int, size: float, link: Link) -> float:
    """Seconds for `world` GPUs, 8 in a node: a ring in each node, then one over the nodes."""
    nodes = math.ceil(world / NODE)
    return ring(min(world, NODE), size, NVLINK) + ring(nodes, size, link)


def step_time(compute: float, communication: float, hidden: float) -> float:
    """Seconds of a step: communication hides behind the share `hidden` of the computing."""
    return max(compute, (1 - hidden) * compute + communication)


def _model(report: BenchReport, ranks: Ranks, hidden: float) -> None:
    """The table on paper: from a measured step time and counted bytes."""
    options = report.options
    member = Member(ranks, options)
    size = float(_gradients(member.step.g) + _gradients(member.step.d))
    if options.step_ms:
        compute, source = options.step_ms / 1e3, "--step-ms"
    else:
        seconds: list[float] = []
        interleaved({"step": lambda: seconds.append(member.do("both"))}, options)
        compute = median(seconds[1:])
        source = "measured here" if ranks.device.type == "cuda" else "measured here on CPUs; for a GPU give --step-ms"
    about = "; ".join(f"{k.name}: {k.gb_s:g} GB/s, {1e6 * k.latency_s:g} us" for k in (NVLINK, *LINKS))
    report.note(NAME, f"on paper, not measured: {FORMULA}")
    report.note(
        NAME,
        f"c = {1e3 * compute:.1f} ms a step of {options.batch_size} pairs ({source}); {size / 1e6:.1f} MB a step "
        f"({_gradients(member.step.g) / 1e6:.1f} with D locked); h = {hidden:.2f}; {about}",
    )
    for link in LINKS:
        times = {world: step_time(compute, all_reduce(world, size, link), hidden) for world in WORLDS}
        for world, t in times.items():
            report.add(
                figure(
                    NAME,
                    f"on paper: {world:,} GPU(s), {link.name}",
                    world * options.batch_size / t,
                    world * options.batch_size / compute,
                    unit="images/s",
                    baseline_name=f"{world:,} x one GPU",
                )
            )
        report.note(NAME, _advice(link, times, compute, size, hidden, options.batch_size))


def _advice(link: Link, times: dict[int, float], compute: float, size: float, hidden: float, batch_size: int) -> str:
    """What to change where the efficiency falls below `ENOUGH`."""
    bend = next((world for world, t in times.items() if compute / t < ENOUGH), None)
    largest = max(times)
    if bend is None:
        return f"{link.name}: efficiency stays at {ENOUGH} or more up to {largest:,} GPUs"
    enough = all_reduce(largest, size, link) / (1 / ENOUGH - 1 + hidden)  # seconds of a step that would do
    larger = math.ceil(batch_size * enough / compute)
    return (
        f"{link.name}: below {ENOUGH} from {bend:,} GPUs on; {larger} pairs a GPU and step instead of {batch_size} (or "
        f"as many in parts: train.accumulate) hold it up to {largest:,}: a longer step sends the same bytes"
    )
