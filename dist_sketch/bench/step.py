"""`dist-sketch bench step`: the training step beside the paper's and the machine's limit; its memory and accuracy."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dist_sketch.bench.measure import BenchReport, Variants, in_new_processes, interleaved, memory, rates
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
JOINT = LossConfig(d_backward="joint")
PAPER = "paper's step"
MEAN_STEPS = 20  # of the running mean of the losses
LOSS_SIZE = 128  # px; at full size the losses would take longer than all other measurements
# (batch, channels, side) of the plain convolutions; the fastest one is the limit
SHAPES = {"cpu": ((8, 128, 64), (8, 256, 64), (8, 512, 32)), "cuda": ((64, 256, 64), (64, 512, 32), (32, 1024, 32))}
QUICK_SHAPES = ((2, 32, 32),)

Pairs = tuple[Tensor, Tensor]  # lines, sketches


def settings(batch_size: int, **sections: Any) -> Config:
    """The paper's configuration, with other `sections` of it."""
    return Config(data=DataConfig(batch_size=batch_size), **sections)


def build(config: Config, ranks: Ranks, precision: str) -> Step:
    """Our step, with the same weights at each call."""
    torch.manual_seed(0)
    return Step(config, ranks, precision)


def batch(count: int, size: int, device: torch.device, first: int = 0) -> Pairs:
    """Procedural pairs as float32 (count, 3, size, size) in [-1, 1]."""
    pairs = [synth.draw(0, first + i, size) for i in range(count)]
    halves = (torch.stack([pixels.from_image(p[side], 3) for p in pairs]) for side in (0, 1))
    line, sketch = (pixels.to_float(h).to(device) for h in halves)
    return line, sketch


def run(report: BenchReport, folder: Path) -> None:
    """Adds all figures of the step."""
    ranks, options = Ranks(expect_world_size=1), report.options
    auto = resolve_precision("auto", ranks.device)
    pairs = batch(options.batch_size, options.size, ranks.device)
    _speed(report, ranks, auto, pairs)
    _adam(report, ranks)
    if options.table or ranks.device.type == "cuda":
        _table(report, ranks, auto, pairs)
    _memory(report, ranks, auto)
    _losses(report, ranks, auto)
    report.note("paper's step: float32, default memory format, sigmoid + BCE, D not frozen in G's turn, plain Adam")
    report.note("limit: forward + backward of one plain 3x3 convolution, channels last; ratio 1 = as fast as that")
    report.note("peak memory: without what is there before the first step")


def steps_at_once(options: BenchOptions, device: torch.device) -> int:
    """How many steps one timing includes."""
    return options.steps or (20 if device.type == "cuda" else 1)


def repeated(
    step: Step | PaperStep, pairs: Pairs, decision: Decision = BOTH, count: int = 1
) -> Callable[[], dict[str, float]]:
    """Takes `count` steps and returns the losses of the last one: the host reads only these, as in a training run."""

    def go() -> dict[str, float]:
        for _ in range(count):
            measured = step(*pairs, decision, bad=0, stop=False)
        return measured if isinstance(measured, dict) else read(measured.reduced)

    return go


def _speed(report: BenchReport, ranks: Ranks, auto: str, pairs: Pairs) -> None:
    """Images per second by precision and locked network, and the share of the machine's limit."""
    options, count = report.options, steps_at_once(report.options, ranks.device)
    config, joint = (settings(options.batch_size, loss=loss) for loss in (LossConfig(), JOINT))
    precisions = dict.fromkeys(["no", "bf16", auto] + ["fp16"] * (ranks.device.type == "cuda"))
    steps: dict[str, Step | PaperStep] = {"paper": PaperStep(config, ranks.device)}
    steps |= {precision: build(config, ranks, precision) for precision in precisions}
    rows = [(kind, lock) for kind in steps for lock in (LOCKS if kind in ("paper", auto) else ["both train"])]
    variants = {f"{kind}, {lock}": repeated(steps[kind], pairs, LOCKS[lock], count) for kind, lock in rows}
    variants["joint"] = repeated(build(joint, ranks, auto), pairs, BOTH, count)
    convolutions = plain_convolutions(options, ranks.device, list(precisions))
    times = interleaved({**variants, **convolutions}, options)

    images = {name: rates(times[name], options.batch_size * count) for name in variants}
    for kind, lock in rows[len(LOCKS) :]:  # after the paper's
        chosen = " (what auto picks)" if kind == auto else ""
        report.add(f"{kind}{chosen}, {lock}", images[f"{kind}, {lock}"], images[f"paper, {lock}"], "images/s", PAPER)
    separate = images[f"{auto}, both train"]
    report.add("joint backward of D", images["joint"], separate, "images/s", "separate backwards (the default)")
    for who, precision, kind in ((f"our step, {auto}", auto, auto), (PAPER, "no", "paper")):
        speed = rates(times[f"{kind}, both train"], count_flops(repeated(steps[kind], pairs)) * count / 1e12)
        same = [name for name in convolutions if name.startswith(f"limit: {precision},")]
        limits = {name: rates(times[name], count_flops(convolutions[name]) / 1e12) for name in same}
        fastest = max(limits, key=lambda name: median(limits[name]))
        report.add(f"share of the limit: {who}", speed, limits[fastest], "TFLOP/s", fastest)


def count_flops(go: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products in `go`."""
    with FlopCounterMode(display=False) as counter:
        go()
    return int(counter.get_total_flops())


def plain_convolutions(options: BenchOptions, device: torch.device, precisions: list[str]) -> Variants:
    """Plain 3x3 convolutions, channels last, forward and both backwards."""
    variants: dict[str, Callable[[], object]] = {}
    for precision in precisions:
        for b, c, side in QUICK_SHAPES if options.quick else SHAPES[device.type]:
            dtype, last = AUTOCAST.get(precision, torch.float32), torch.channels_last
            conv = nn.Conv2d(c, c, 3, padding=1).to(device, dtype).to(memory_format=last)
            x, gradient = (torch.randn(b, c, side, side).to(device, dtype, memory_format=last) for _ in range(2))
            x.requires_grad_()

            def go(conv: nn.Conv2d = conv, x: Tensor = x, gradient: Tensor = gradient) -> None:
                conv(x).backward(gradient)

            variants[f"limit: {precision}, convolution {b}x{c}x{side}x{side}"] = go
    return variants


def _adam(report: BenchReport, ranks: Ranks) -> None:
    """Adam's update alone, beside the unfused one and a memory copy."""
    nets = [PaperStep(settings(2), ranks.device).g for _ in range(2)]
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


def _table(report: BenchReport, ranks: Ranks, auto: str, pairs: Pairs) -> None:
    """Images per second over the batch size, up to what fits into the device's memory."""
    options, best = report.options, (0.0, 0)
    largest = 4096 if ranks.device.type == "cuda" else 2 * options.batch_size
    for b in (2**i for i in range(1, largest.bit_length())):
        try:
            line, sketch = (t.repeat(math.ceil(b / len(t)), 1, 1, 1)[:b] for t in pairs)
            count = max(1, steps_at_once(options, ranks.device) * options.batch_size // b)
            steps: dict[str, Step | PaperStep] = {"paper": PaperStep(settings(b), ranks.device)}
            steps["ours"] = build(settings(b), ranks, auto)
            variants = {name: repeated(step, (line, sketch), BOTH, count) for name, step in steps.items()}
            times = interleaved(variants, options)
        except torch.OutOfMemoryError:
            break
        speeds = {n: rates(t, b * count) for n, t in times.items()}
        best = max(best, (median(speeds["ours"]), b))
        report.add(f"batch {b}, {auto}", speeds["ours"], speeds["paper"], "images/s", PAPER)
        del steps, variants, line, sketch
    report.note(f"best batch here: {best[1]} ({best[0]:.1f} images/s)")


def _memory(report: BenchReport, ranks: Ranks, auto: str) -> None:
    """Peak memory of a step, less what is there before the first one. On CPUs each needs a process of its own."""
    jobs = [(kind, auto, report.options) for kind in ("idle", "separate", "joint", "paper")]
    idle, *peaks = map(_peak, jobs) if ranks.device.type == "cuda" else in_new_processes(_peak, jobs)
    separate, joint, papers = ([(peak - idle) / 1e6] for peak in peaks)
    report.add("peak memory, separate backward of D", separate, papers, "MB", PAPER)
    report.add("peak memory, joint backward of D", joint, separate, "MB", "separate backwards")


def _peak(job: tuple[str, str, BenchOptions]) -> int:
    """Bytes at the peak of two steps; "idle": before the first."""
    kind, precision, options = job
    ranks = Ranks(expect_world_size=1)
    device, config = ranks.device, settings(options.batch_size, loss=JOINT if kind == "joint" else LossConfig())
    pairs = batch(options.batch_size, options.size, device)
    step = PaperStep(config, device) if kind == "paper" else build(config, ranks, precision)
    go = repeated(step, pairs, BOTH, 2)
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
    config = settings(options.batch_size, generator=GeneratorConfig(dropout=0.0))

    def curve(step: Step | PaperStep) -> list[dict[str, float]]:
        return [repeated(step, pairs[i % len(pairs)])() for i in range(options.loss_steps)]

    curves = {kind: curve(build(config, ranks, precision)) for kind, precision in (("float32", "no"), ("fast", fast))}
    curves["paper"] = curve(PaperStep(config, ranks.device))
    window = np.ones(min(MEAN_STEPS, options.loss_steps)) / min(MEAN_STEPS, options.loss_steps)
    for loss in ("loss/g", "loss/d"):
        means = {k: np.convolve([step[loss] for step in curve], window, "valid") for k, curve in curves.items()}
        ours, papers = ([float(np.max(np.abs(means[k] / means["float32"] - 1))) * 100] for k in ("fast", "paper"))
        name = f"{loss}: {fast} beside float32, {options.loss_steps} steps"
        report.add(name, ours, papers, "%", "rounding alone: paper's beside our float32")
    report.note(
        f"losses: largest deviation of their mean over {MEAN_STEPS} steps; {size} px, no dropout, same weights, data"
    )
