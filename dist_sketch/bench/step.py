"""`dist-sketch bench step`: the training step beside the paper's and the machine's limit; its memory, its accuracy."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dist_sketch.bench.figures import BenchReport, figure
from dist_sketch.bench.machine import rss
from dist_sketch.bench.options import BenchOptions
from dist_sketch.bench.paper_way import PaperStep
from dist_sketch.bench.timing import Times, alone, interleaved, rates
from dist_sketch.core.config import Config, DataConfig, GeneratorConfig, LossConfig
from dist_sketch.core.precision import AUTOCAST, resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import pixels
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.training.policy import BOTH, Decision
from dist_sketch.training.step import Step, read

NAME = "step"


LOCKS = {"both": BOTH, "D locked": Decision(False, True, "bench"), "G locked": Decision(True, False, "bench")}


PAPER = "paper's step"


MEAN_STEPS = 20  # of the running mean of the losses


LOSS_SIZE = 128  # px; over 100 steps the full size would take longer than all else together


# (batch, channels, side) of the plain convolutions among which the limit is looked for
SHAPES = {"cpu": ((8, 128, 64), (8, 256, 64), (8, 512, 32)), "cuda": ((64, 256, 64), (64, 512, 32), (32, 1024, 32))}


QUICK_SHAPES = ((2, 32, 32),)


def settings(batch_size: int, *, joint: bool = False, dropout: float = 0.5) -> Config:
    """The paper's configuration."""
    way: Literal["joint", "separate"] = "joint" if joint else "separate"
    return Config(
        data=DataConfig(batch_size=batch_size),
        loss=LossConfig(d_backward=way),
        generator=GeneratorConfig(dropout=dropout),
    )


def build(config: Config, ranks: Ranks, precision: str) -> Step:
    """Our step, with the same weights each time."""
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


def run(report: BenchReport, folder: Path) -> None:
    """All figures of the step."""
    ranks, options = Ranks(expect_world_size=1), report.options
    auto = resolve_precision("auto", ranks.device)
    line, sketch = batch(options.batch_size, options.size, ranks.device)
    _speed(report, ranks, auto, line, sketch)
    _adam(report, ranks)
    if options.table or ranks.device.type == "cuda":
        _table(report, ranks, auto, line, sketch)
    _memory(report, ranks, auto)
    _losses(report, ranks, auto)
    report.note(
        NAME, "paper's step: float32, default memory format, sigmoid + BCE, D not frozen in G's turn, plain Adam"
    )
    report.note(
        NAME, "limit: forward + backward of one plain 3x3 convolution, channels last; ratio 1 = as fast as that"
    )
    report.note(NAME, "peak memory: less what is there before the first step")


def steps_at_once(options: BenchOptions, device: torch.device) -> int:
    """How many steps a timing takes together."""
    return options.steps or (20 if device.type == "cuda" else 1)


def ours(step: Step, line: Tensor, sketch: Tensor, decision: Decision, count: int) -> Callable[[], object]:
    """`count` steps, as a training run has them: the host reads the last one's losses."""

    def go() -> object:
        for _ in range(count):
            measured = step(line, sketch, decision, bad=0, stop=False)
        return read(measured.reduced)

    return go


def paper(step: PaperStep, line: Tensor, sketch: Tensor, decision: Decision, count: int) -> Callable[[], object]:
    """`count` of the paper's steps."""
    return lambda: [step(line, sketch, train_d=decision.train_d, train_g=decision.train_g) for _ in range(count)]


def _speed(report: BenchReport, ranks: Ranks, auto: str, line: Tensor, sketch: Tensor) -> None:
    options, count = report.options, steps_at_once(report.options, ranks.device)
    plain, config = build_paper(settings(len(line)), ranks.device), settings(len(line))
    variants: dict[str, Callable[[], object]] = {
        f"paper, {name}": paper(plain, line, sketch, lock, count) for name, lock in LOCKS.items()
    }
    nets = {p: build(config, ranks, p) for p in dict.fromkeys(("no", "bf16", auto))}
    if ranks.device.type == "cuda":
        nets["fp16"] = build(config, ranks, "fp16")
    for precision, step in nets.items():
        for name, lock in LOCKS.items() if precision == auto else (("both", BOTH),):
            variants[f"{precision}, {name}"] = ours(step, line, sketch, lock, count)
    joint = build(settings(len(line), joint=True), ranks, auto)
    variants["joint"] = ours(joint, line, sketch, BOTH, count)
    limits, flops = _convolutions(options, ranks.device, list(nets))
    variants |= limits
    times = interleaved(variants, options)

    work = len(line) * count
    for key in variants:
        precision, _, lock_name = key.partition(", ")
        if precision not in nets or not lock_name:
            continue
        chosen = " (what auto picks)" if precision == auto else ""
        trains = "both train" if lock_name == "both" else lock_name
        report.add(
            figure(
                NAME,
                f"{precision}{chosen}, {trains}",
                rates(times[key], work),
                rates(times[f"paper, {lock_name}"], work),
                unit="images/s",
                baseline_name=PAPER,
            )
        )
    separate = rates(times[f"{auto}, both"], work)
    report.add(
        figure(
            NAME,
            "joint backward of D",
            rates(times["joint"], work),
            separate,
            unit="images/s",
            baseline_name="separate backwards (the default)",
        )
    )
    step_flops = _flops(ours(nets[auto], line, sketch, BOTH, 1))
    _share(report, times, limits, flops, f"{auto}, both", auto, step_flops * count)
    paper_flops = _flops(paper(plain, line, sketch, BOTH, 1))
    _share(report, times, limits, flops, "paper, both", "no", paper_flops * count)


def _flops(go: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        go()
    return int(counter.get_total_flops())


def _share(
    report: BenchReport,
    times: Times,
    limits: dict[str, Callable[[], object]],
    flops: dict[str, float],
    key: str,
    precision: str,
    work: float,
) -> None:
    """Operations a second of a step beside those of the quickest plain convolution in the same precision."""
    best = min((n for n in limits if n.startswith(f"limit: {precision},")), key=lambda n: median(times[n]) / flops[n])
    who = "paper's step" if key.startswith("paper") else f"our step, {precision}"
    report.add(
        figure(
            NAME,
            f"share of the limit: {who}",
            rates(times[key], work / 1e12),
            rates(times[best], flops[best] / 1e12),
            unit="TFLOP/s",
            baseline_name=best,
        )
    )


def _convolutions(
    options: BenchOptions, device: torch.device, precisions: list[str]
) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Plain 3x3 convolutions, channels last, forward and both backwards: by name, and their operations."""
    variants: dict[str, Callable[[], object]] = {}
    flops: dict[str, float] = {}
    for precision in precisions:
        for b, c, side in QUICK_SHAPES if options.quick else SHAPES[device.type]:
            dtype = AUTOCAST.get(precision, torch.float32)
            last = torch.channels_last
            conv = nn.Conv2d(c, c, 3, padding=1).to(device, dtype).to(memory_format=last)
            x, gradient = (
                torch.randn(b, c, side, side).to(device, dtype, memory_format=last).requires_grad_(leaf)
                for leaf in (True, False)
            )

            def go(conv: nn.Conv2d = conv, x: Tensor = x, gradient: Tensor = gradient) -> None:
                conv(x).backward(gradient)

            name = f"limit: {precision}, convolution {b}x{c}x{side}x{side}"
            variants[name], flops[name] = go, 6.0 * b * side * side * c * c * 9
    return variants, flops


def _adam(report: BenchReport, ranks: Ranks) -> None:
    """The update alone beside plain Adam's; its limit is a memory copy."""
    config = settings(2)
    nets = [build_paper(config, ranks.device).g for _ in range(2)]
    for p in (p for net in nets for p in net.parameters()):
        p.grad = torch.zeros_like(p)
    fused = torch.optim.Adam(nets[0].parameters(), fused=True)
    plain = torch.optim.Adam(nets[1].parameters())
    source = torch.zeros(16_000_000 if report.options.quick else 64_000_000, device=ranks.device)
    target = torch.empty_like(source)
    variants = {"fused": fused.step, "plain": plain.step, "copy": lambda: target.copy_(source)}
    times = interleaved(variants, report.options, warm=2)
    touched = sum(p.numel() for p in nets[0].parameters()) * 4 * 7 / 1e9  # reads p, g, m, v; writes p, m, v
    copy = rates(times["copy"], source.numel() * 4 * 2 / 1e9)
    for name, baseline, about in (
        ("Adam's update of G, fused", rates(times["plain"], touched), "plain Adam"),
        ("Adam's update of G, fused: share", copy, "limit: memory copy"),
    ):
        report.add(figure(NAME, name, rates(times["fused"], touched), baseline, unit="GB/s", baseline_name=about))


def _table(report: BenchReport, ranks: Ranks, auto: str, line: Tensor, sketch: Tensor) -> None:
    """Images/s over the batch size, up to what the device can hold."""
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
        row = figure(NAME, f"batch {b}, {auto}", speeds["ours"], speeds["paper"], unit="images/s", baseline_name=PAPER)
        report.add(row)
        del variants, a, z
        b *= 2
    report.note(NAME, f"best batch here: {best[1]} ({best[0]:.1f} images/s)")


def _memory(report: BenchReport, ranks: Ranks, auto: str) -> None:
    """Peak memory of a step, less what stands there before the first: one process for each on CPUs."""
    kinds = ("idle", "separate", "joint", "paper")
    if ranks.device.type == "cuda":
        peaks = {kind: _peak(kind, ranks, auto, report.options) for kind in kinds}
    else:
        found = alone(_peak_alone, [(kind, auto, report.options) for kind in kinds])
        peaks = dict(zip(kinds, found, strict=True))
    mb = {kind: (peak - peaks["idle"]) / 1e6 for kind, peak in peaks.items()}
    for kind, other, about in (
        ("separate", "paper", PAPER),
        ("joint", "separate", "separate backwards"),
    ):
        report.add(
            figure(
                NAME,
                f"peak memory, {kind} backward of D",
                mb[kind],
                mb[other],
                unit="MB",
                baseline_name=about,
                lower_is_better=True,
            )
        )


def _peak(kind: str, ranks: Ranks, precision: str, options: BenchOptions) -> int:
    """Bytes at the peak of two steps; "idle": before the first."""
    device, config = ranks.device, settings(options.batch_size, joint=kind == "joint")
    shape = (options.batch_size, 3, options.size, options.size)
    line, sketch = (torch.rand(shape, device=device) * 2 - 1 for _ in range(2))
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
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else rss()[1]


def _peak_alone(spec: tuple[str, str, BenchOptions]) -> int:
    kind, precision, options = spec
    return _peak(kind, Ranks(expect_world_size=1), precision, options)


def _losses(report: BenchReport, ranks: Ranks, auto: str) -> None:
    """How far the losses of the fast precision move away from float32's; beside what rounding alone does."""
    options = report.options
    size, fast = min(options.size, LOSS_SIZE), "bf16" if auto == "no" else auto
    pairs = [batch(options.batch_size, size, ranks.device, first=options.batch_size * i) for i in range(2)]
    # Without dropout: its random numbers would be the larger difference.
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
    for name in ("loss/g", "loss/d"):
        means = {k: _running([step[name] for step in curve]) for k, curve in curves.items()}
        apart = {k: float(np.max(np.abs(means[k] / means["float32"] - 1))) * 100 for k in ("fast", "paper")}
        report.add(
            figure(
                NAME,
                f"{name}: {fast} beside float32, {options.loss_steps} steps",
                apart["fast"],
                apart["paper"],
                unit="%",
                baseline_name="rounding alone: paper's beside our float32",
                lower_is_better=True,
            )
        )

    report.note(
        NAME,
        f"losses: largest deviation of their mean over {MEAN_STEPS} steps; {size} px, no dropout, same weights, data",
    )


def _running(values: list[float]) -> Any:
    window = min(MEAN_STEPS, len(values))
    return np.convolve(values, np.ones(window) / window, "valid")
