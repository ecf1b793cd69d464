"""`dist-sketch bench step`: the training step beside the paper's and the machine's limit; its memory and accuracy."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dist_sketch.bench.measure import BenchReport, in_new_processes, interleaved, memory, rates
from dist_sketch.bench.options import BenchOptions
from dist_sketch.bench.paper_way import PaperStep
from dist_sketch.core.config import Config, DataConfig, GeneratorConfig, LossConfig
from dist_sketch.core.precision import AUTOCAST, resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import pixels
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.training.policy import BOTH, Decision
from dist_sketch.training.step import Step, read

LOCKS = {"both train": BOTH, "D locked": Decision(False, True, "bench"), "G locked": Decision(True, False, "bench")}
PAPER = "paper's step"
MEAN_STEPS = 20  # of the running mean of the losses
LOSS_SIZE = 128  # px; at full size the losses would take longer than all other measurements
# (batch, channels, side) of the plain convolutions; the fastest one is the limit
SHAPES = {"cpu": ((8, 128, 64), (8, 256, 64), (8, 512, 32)), "cuda": ((64, 256, 64), (64, 512, 32), (32, 1024, 32))}
QUICK_SHAPES = ((2, 32, 32),)


def settings(batch_size: int, *, joint: bool = False, dropout: float = 0.5) -> Config:
    """The paper's configuration."""
    return Config(
        data=DataConfig(batch_size=batch_size),
        loss=LossConfig(d_backward="joint" if joint else "separate"),
        generator=GeneratorConfig(dropout=dropout),
    )


def build(config: Config, ranks: Ranks, precision: str) -> Step:
    """Our step, with the same weights at each call."""
    torch.manual_seed(0)
    return Step(config, ranks, precision)


def build_paper(config: Config, device: torch.device) -> PaperStep:
    """The paper's step, with the weights that `build` gives."""
    torch.manual_seed(0)
    return PaperStep(config, device)


def batch(count: int, size: int, device: torch.device, first: int = 0) -> tuple[Tensor, Tensor]:
    """Procedural pairs as float32 (count, 3, size, size) in [-1, 1]."""
    pairs = [synth.draw(0, first + i, size) for i in range(count)]
    halves = (torch.stack([pixels.from_image(p[side], 3) for p in pairs]) for side in (0, 1))
    line, sketch = (pixels.to_float(h).to(device) for h in halves)
    return line, sketch


def random_pairs(options: BenchOptions, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random numbers in the shape of `batch`, for measurements in which the content does not matter."""
    shape = (options.batch_size, 3, options.size, options.size)
    return torch.rand(shape, device=device) * 2 - 1, torch.rand(shape, device=device) * 2 - 1


def run(report: BenchReport, folder: Path) -> None:
    """Adds all figures of the step."""
    ranks, options = Ranks(expect_world_size=1), report.options
    auto = resolve_precision("auto", ranks.device)
    line, sketch = batch(options.batch_size, options.size, ranks.device)
    _speed(report, ranks, auto, line, sketch)
    _adam(report, ranks)
    if options.table or ranks.device.type == "cuda":
        _table(report, ranks, auto, line, sketch)
    _memory(report, ranks, auto)
    _losses(report, ranks, auto)
    report.note("paper's step: float32, default memory format, sigmoid + BCE, D not frozen in G's turn, plain Adam")
    report.note("limit: forward + backward of one plain 3x3 convolution, channels last; ratio 1 = as fast as that")
    report.note("peak memory: without what is there before the first step")


def steps_at_once(options: BenchOptions, device: torch.device) -> int:
    """How many steps one timing includes."""
    return options.steps or (20 if device.type == "cuda" else 1)


def ours(step: Step, line: Tensor, sketch: Tensor, decision: Decision, count: int) -> Callable[[], object]:
    """Takes `count` steps as a training run does: the host reads only the losses of the last one."""

    def go() -> object:
        for _ in range(count):
            measured = step(line, sketch, decision, bad=0, stop=False)
        return read(measured.reduced)

    return go


def paper(step: PaperStep, line: Tensor, sketch: Tensor, decision: Decision, count: int) -> Callable[[], object]:
    """Takes `count` of the paper's steps."""
    return lambda: [step(line, sketch, train_d=decision.train_d, train_g=decision.train_g) for _ in range(count)]


def _speed(report: BenchReport, ranks: Ranks, auto: str, line: Tensor, sketch: Tensor) -> None:
    """Images per second by precision and locked network, and the share of the machine's limit."""
    options, count = report.options, steps_at_once(report.options, ranks.device)
    config = settings(len(line))
    plain = build_paper(config, ranks.device)
    variants = {f"paper, {name}": paper(plain, line, sketch, lock, count) for name, lock in LOCKS.items()}
    precisions = dict.fromkeys(["no", "bf16", auto] + ["fp16"] * (ranks.device.type == "cuda"))
    steps = {precision: build(config, ranks, precision) for precision in precisions}
    rows = [(precision, name) for precision in steps for name in (LOCKS if precision == auto else ["both train"])]
    for precision, name in rows:
        variants[f"{precision}, {name}"] = ours(steps[precision], line, sketch, LOCKS[name], count)
    variants["joint"] = ours(build(settings(len(line), joint=True), ranks, auto), line, sketch, BOTH, count)
    convolutions, flops = _convolutions(options, ranks.device, list(steps))
    times = interleaved(variants | convolutions, options)

    images = {name: rates(times[name], len(line) * count) for name in variants}
    for precision, name in rows:
        chosen = " (what auto picks)" if precision == auto else ""
        speeds = images[f"{precision}, {name}"], images[f"paper, {name}"]
        report.add(f"{precision}{chosen}, {name}", *speeds, "images/s", PAPER)
    separate = images[f"{auto}, both train"]
    report.add("joint backward of D", images["joint"], separate, "images/s", "separate backwards (the default)")
    for who, precision, key, go in (
        (f"our step, {auto}", auto, f"{auto}, both train", ours(steps[auto], line, sketch, BOTH, 1)),
        ("paper's step", "no", "paper, both train", paper(plain, line, sketch, BOTH, 1)),
    ):
        same = [name for name in convolutions if name.startswith(f"limit: {precision},")]
        fastest = min(same, key=lambda name: median(times[name]) / flops[name])
        speed, limit = rates(times[key], _flops(go) * count / 1e12), rates(times[fastest], flops[fastest] / 1e12)
        report.add(f"share of the limit: {who}", speed, limit, "TFLOP/s", fastest)


def _flops(go: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        go()
    return int(counter.get_total_flops())


def _convolutions(
    options: BenchOptions, device: torch.device, precisions: list[str]
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Plain 3x3 convolutions, channels last, forward and both backwards; and their operations, by the same names."""
    variants: dict[str, Callable[[], object]] = {}
    flops: dict[str, float] = {}
    for precision in precisions:
        for b, c, side in QUICK_SHAPES if options.quick else SHAPES[device.type]:
            dtype, last = AUTOCAST.get(precision, torch.float32), torch.channels_last
            conv = nn.Conv2d(c, c, 3, padding=1).to(device, dtype).to(memory_format=last)
            x, gradient = (torch.randn(b, c, side, side).to(device, dtype, memory_format=last) for _ in range(2))
            x.requires_grad_()

            def go(conv: nn.Conv2d = conv, x: Tensor = x, gradient: Tensor = gradient) -> None:
                conv(x).backward(gradient)

            name = f"limit: {precision}, convolution {b}x{c}x{side}x{side}"
            variants[name], flops[name] = go, 6.0 * b * side * side * c * c * 9
    return variants, flops


def _adam(report: BenchReport, ranks: Ranks) -> None:
    """Adam's update alone, beside the unfused one and a memory copy."""
    nets = [build_paper(settings(2), ranks.device).g for _ in range(2)]
    for p in (p for net in nets for p in net.parameters()):
        p.grad = torch.zeros_like(p)
    fused, plain = torch.optim.Adam(nets[0].parameters(), fused=True), torch.optim.Adam(nets[1].parameters())
    source = torch.zeros(16_000_000 if report.options.quick else 64_000_000, device=ranks.device)
    target = torch.empty_like(source)
    variants = {"fused": fused.step, "plain": plain.step, "copy": lambda: target.copy_(source)}
    times = interleaved(variants, report.options, warm=2)
    touched = sum(p.numel() for p in nets[0].parameters()) * 4 * 7 / 1e9  # reads p, g, m, v; writes p, m, v
    speed, copy = rates(times["fused"], touched), rates(times["copy"], source.numel() * 4 * 2 / 1e9)
    report.add("Adam's update of G, fused", speed, rates(times["plain"], touched), "GB/s", "plain Adam")
    report.add("Adam's update of G, fused: share", speed, copy, "GB/s", "limit: memory copy")


def _table(report: BenchReport, ranks: Ranks, auto: str, line: Tensor, sketch: Tensor) -> None:
    """Images per second over the batch size, up to what fits into the device's memory."""
    options, best = report.options, (0.0, 0)
    largest = 4096 if ranks.device.type == "cuda" else 2 * options.batch_size
    b = 2
    while b <= largest:
        try:
            a, z = (t.repeat(math.ceil(b / len(t)), 1, 1, 1)[:b] for t in (line, sketch))
            count = max(1, steps_at_once(options, ranks.device) * options.batch_size // b)
            variants = {
                "paper": paper(build_paper(settings(b), ranks.device), a, z, BOTH, count),
                "ours": ours(build(settings(b), ranks, auto), a, z, BOTH, count),
            }
            times = interleaved(variants, options)
        except torch.OutOfMemoryError:
            break
        speeds = {n: rates(t, b * count) for n, t in times.items()}
        best = max(best, (median(speeds["ours"]), b))
        report.add(f"batch {b}, {auto}", speeds["ours"], speeds["paper"], "images/s", PAPER)
        del variants, a, z
        b *= 2
    report.note(f"best batch here: {best[1]} ({best[0]:.1f} images/s)")


def _memory(report: BenchReport, ranks: Ranks, auto: str) -> None:
    """Peak memory of a step, less what is there before the first one. On CPUs each needs a process of its own."""
    jobs = [(kind, auto, report.options) for kind in ("idle", "separate", "joint", "paper")]
    idle, *peaks = map(_peak, jobs) if ranks.device.type == "cuda" else in_new_processes(_peak, jobs)
    separate, joint, papers = ((peak - idle) / 1e6 for peak in peaks)
    for name, value, baseline, baseline_name in (
        ("separate", separate, papers, PAPER),
        ("joint", joint, separate, "separate backwards"),
    ):
        name = f"peak memory, {name} backward of D"
        report.add(name, value, baseline, "MB", baseline_name, lower_is_better=True)


def _peak(job: tuple[str, str, BenchOptions]) -> int:
    """Bytes at the peak of two steps; "idle": before the first."""
    kind, precision, options = job
    ranks = Ranks(expect_world_size=1)
    device, config = ranks.device, settings(options.batch_size, joint=kind == "joint")
    line, sketch = random_pairs(options, device)
    go: Callable[[], object]
    if kind == "paper":
        go = paper(build_paper(config, device), line, sketch, BOTH, 2)
    else:
        go = ours(build(config, ranks, precision), line, sketch, BOTH, 2)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if kind != "idle":
        go()
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else memory()[1]


def _losses(report: BenchReport, ranks: Ranks, auto: str) -> None:
    """How far the losses of the fast precision move away from those of float32, beside what rounding alone does."""
    options = report.options
    size, fast = min(options.size, LOSS_SIZE), "bf16" if auto == "no" else auto
    pairs = [batch(options.batch_size, size, ranks.device, first=options.batch_size * i) for i in range(2)]
    # Without dropout, whose random numbers would make a larger difference.
    config = settings(options.batch_size, dropout=0.0)

    def mine(precision: str) -> Iterator[dict[str, float]]:
        step = build(config, ranks, precision)
        for i in range(options.loss_steps):
            yield read(step(*pairs[i % len(pairs)], BOTH, bad=0, stop=False).reduced)

    def theirs() -> Iterator[dict[str, float]]:
        step = build_paper(config, ranks.device)
        for i in range(options.loss_steps):
            found = step(*pairs[i % len(pairs)])
            yield found | {"loss/d": found["loss/d_real"] + found["loss/d_fake"]}

    curves = {"float32": list(mine("no")), "fast": list(mine(fast)), "paper": list(theirs())}
    for loss in ("loss/g", "loss/d"):
        means = {k: _running_mean([step[loss] for step in curve]) for k, curve in curves.items()}
        ours, papers = (float(np.max(np.abs(means[k] / means["float32"] - 1))) * 100 for k in ("fast", "paper"))
        name = f"{loss}: {fast} beside float32, {options.loss_steps} steps"
        report.add(name, ours, papers, "%", "rounding alone: paper's beside our float32", lower_is_better=True)
    report.note(
        f"losses: largest deviation of their mean over {MEAN_STEPS} steps; {size} px, no dropout, same weights, data"
    )


def _running_mean(values: list[float]) -> Any:
    window = min(MEAN_STEPS, len(values))
    return np.convolve(values, np.ones(window) / window, "valid")
