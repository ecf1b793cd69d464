"""`dist-sketch bench step`: the training step beside the paper's and the machine's limit; its memory and accuracy."""

import gc
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_sketch.bench import gpu_idle
from dist_sketch.bench.limit import Limit, count_flops, plain_convolutions
from dist_sketch.bench.measure import BenchReport, Times, Variants, in_new_processes, interleaved, memory, rates
from dist_sketch.bench.options import BenchOptions
from dist_sketch.bench.paper_way import PaperStep
from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config
from dist_sketch.core.precision import resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import pixels
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.model import networks
from dist_sketch.training.measures import read
from dist_sketch.training.policy import BOTH, Decision
from dist_sketch.training.step import Step

LOCKS = {"both train": BOTH, "D locked": Decision(False, True, "bench"), "G locked": Decision(True, False, "bench")}
PAPER = "paper's step"
EAGER = "the same step without CUDA graphs"
MEAN_STEPS = 20  # of the running mean of the losses
FEW_STEPS = {"cpu": 1, "cuda": 5}  # enough on GPUs that the step has become a CUDA graph
LOSS_SIZE = 128  # px; at full size the losses would take longer than all other measurements

Pairs = tuple[Tensor, Tensor]  # lines, sketches


def settings(batch_size: int, preset: str | None = None, **sections: Any) -> Config:
    """The configuration of the paper or of a preset, with this batch size and other `sections` of it."""
    config = replace(cfg.load(preset), **sections)
    # No decay of the learning rates: a measurement has no last step.
    return replace(config, data=replace(config.data, batch_size=batch_size), optim=replace(config.optim, decay=0.0))


def build(config: Config, ranks: Ranks, precision: str, **more: Any) -> Step:
    """Our step, with the same weights at each call."""
    torch.manual_seed(0)
    return Step(config, ranks, precision, **more)


def batch(count: int, size: int, device: torch.device, first: int = 0, channels: int = 3) -> Pairs:
    """Procedural pairs as float32 (count, channels, size, size) in [-1, 1]."""
    pairs = [synth.draw(0, first + i, size) for i in range(count)]
    halves = (torch.stack([pixels.from_image(p[side], channels) for p in pairs]) for side in (0, 1))
    line, sketch = (pixels.to_float(h).to(device) for h in halves)
    return line, sketch


def run(report: BenchReport, folder: Path) -> None:
    """Adds all figures of the step. Writes the file after each part, so that a call that is cut off keeps the rest."""
    ranks, options = Ranks(expect_world_size=1), report.options
    auto = resolve_precision("auto", ranks.device)
    config = settings(options.batch_size, options.preset)
    for size in (options.size, min(options.size, LOSS_SIZE)):
        networks.check_config(config, size, options.batch_size)
    pairs = batch(options.batch_size, options.size, ranks.device, channels=config.data.channels)
    limit = _speed(report, ranks, auto, config, pairs)
    if options.table or options.batch_sizes or ranks.device.type == "cuda":
        _table(report, ranks, auto, config, pairs, limit)
    for part in (_adam, _memory, _losses):
        free(ranks.device)
        part(report, ranks, auto, config)
        report.write()
    of = f" of {options.preset}" if options.preset else ""
    report.note(
        f"{PAPER}: networks{of} in torch's default float32 (TF32 on GPUs) and memory format, sigmoid + BCE, D not "
        "frozen in G's turn, plain Adam"
    )
    report.note("limit: forward + backward of one plain 3x3 convolution, channels last; ratio 1 = as fast as that")
    report.note("peak memory: of eager steps, without what is there before the first one")
    if ranks.device.type == "cuda":
        report.note(
            "GPU idle: 1 - time in which kernels run, from the profiler / time of the step without the profiler"
        )


def free(device: torch.device) -> None:
    """Gives back the memory of networks that nobody uses any more, so that the next ones find room."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


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


def _speed(report: BenchReport, ranks: Ranks, auto: str, config: Config, pairs: Pairs) -> Limit:
    """Images per second by precision and locked network, and the share of the machine's limit, which it returns."""
    options, device = report.options, ranks.device
    count, on_gpu = steps_at_once(options, device), device.type == "cuda"
    precisions = dict.fromkeys(["no", "bf16", auto] + ["fp16"] * on_gpu)
    steps: dict[str, Step | PaperStep] = {"paper": PaperStep(config, device)}
    steps |= {precision: build(config, ranks, precision) for precision in precisions}
    rows = [(kind, lock) for kind in steps for lock in (LOCKS if kind in ("paper", auto) else ["both train"])]
    variants = {f"{kind}, {lock}": repeated(steps[kind], pairs, LOCKS[lock], count) for kind, lock in rows}
    variants["joint"] = repeated(build(joint(config), ranks, auto), pairs, BOTH, count)
    eager = build(config, ranks, auto, capture=False)
    if on_gpu:
        variants["eager"] = repeated(eager, pairs, BOTH, count)
        planes = build(config, ranks, auto, layout=torch.contiguous_format)
        variants["planes"] = repeated(planes, pairs, BOTH, count)
    plain = "tf32" if on_gpu else "no"  # the paper's float32
    convolutions = plain_convolutions(options, device, [*dict.fromkeys([*precisions, plain])])
    times = interleaved({**variants, **convolutions}, options)

    images = {name: rates(times[name], options.batch_size * count) for name in variants}
    ours, paper = f"{auto}, both train", "paper, both train"
    for kind, lock in rows[len(LOCKS) :]:  # after the paper's
        chosen = " (what auto picks)" if kind == auto else ""
        report.add(f"{kind}{chosen}, {lock}", images[f"{kind}, {lock}"], images[f"paper, {lock}"], "images/s", PAPER)
    report.add(f"a step, {auto}", milliseconds(times[ours], count), milliseconds(times[paper], count), "ms", PAPER)
    report.add("joint backward of D", images["joint"], images[ours], "images/s", "separate backwards (the default)")
    if on_gpu:
        report.add("CUDA graphs", images[ours], images["eager"], "images/s", EAGER)
        report.add("images as channels_last", images[ours], images["planes"], "images/s", "images as planes (NCHW)")
        _idle(report, device, {name: variants[name] for name in (ours, "eager")}, times, count)
    report.note(f"our step: {steps[auto].way}")  # type: ignore[union-attr]

    limits = {}
    for who, precision, name, step in ((f"our step, {auto}", auto, ours, eager), (PAPER, plain, paper, steps["paper"])):
        speed = rates(times[name], count_flops(repeated(step, pairs)) * count / 1e12)
        same = {n: count_flops(go) for n, go in convolutions.items() if n.startswith(f"limit: {precision},")}
        found = {n: rates(times[n], flops / 1e12) for n, flops in same.items()}
        fastest = max(found, key=lambda n: median(found[n]))
        report.add(f"share of the limit: {who}", speed, found[fastest], "TFLOP/s", fastest)
        limits[who] = Limit(fastest, convolutions[fastest], same[fastest])
    report.write()
    return limits[f"our step, {auto}"]


def _idle(
    report: BenchReport,
    device: torch.device,
    pair: Variants,
    times: Times,
    count: int,
    head: str = "",
    about: str = EAGER,
) -> None:
    """The GPU's idle share and number of kernels in the first of two variants, each of `count` steps."""
    # Twice, because the profiler may miss the beginning of its first session.
    seen = {name: max(gpu_idle.watch(go, device) for _ in range(2)) for name, go in pair.items()}
    if not all(activity.kernels for activity in seen.values()):
        report.note(f"{head}GPU idle: not measured, the profiler saw no kernels")
        return
    ours, baseline = (gpu_idle.idle_percent(seen[name].busy_s, times[name]) for name in pair)
    report.add(f"{head}GPU idle", ours, baseline, "%", about)
    ours, baseline = ([seen[name].kernels / count] for name in pair)
    report.add(f"{head}kernels a step", ours, baseline, "kernels", about)


def joint(config: Config) -> Config:
    """`config` with one backward for both terms of D's loss."""
    return replace(config, loss=replace(config.loss, d_backward="joint"))


def milliseconds(times: list[float], count: int) -> list[float]:
    """Seconds of rounds of `count` steps -> milliseconds of a step."""
    return [1e3 * t / count for t in times]


def _adam(report: BenchReport, ranks: Ranks, auto: str, config: Config) -> None:
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


def _table(report: BenchReport, ranks: Ranks, auto: str, config: Config, pairs: Pairs, limit: Limit) -> None:
    """Speed and share of the limit over the batch size, up to what fits into the device's memory."""
    options, device = report.options, ranks.device
    largest = 4096 if device.type == "cuda" and not options.quick else 2 * options.batch_size
    best = (0.0, 0)
    flops = count_flops(repeated(build(config, ranks, auto, capture=False), pairs)) / options.batch_size  # of a pair
    for b in options.batch_sizes or [2**i for i in range(1, largest.bit_length())]:
        free(device)
        try:
            best = max(best, (_at_batch_size(report, ranks, auto, config, pairs, limit, b, flops), b))
        except RuntimeError as e:
            if not _out_of_memory(e):
                raise
            report.note(f"batch {b}: does not fit into the memory")
            break
        report.write()
    report.note(f"best batch here: {best[1]} ({best[0]:.1f} images/s)")


def _at_batch_size(
    report: BenchReport, ranks: Ranks, auto: str, config: Config, pairs: Pairs, limit: Limit, b: int, flops: float
) -> float:
    """Adds the figures of the batch size `b`; returns our images per second."""
    options, device = report.options, ranks.device
    config = replace(config, data=replace(config.data, batch_size=b))
    line, sketch = (t.repeat(math.ceil(b / len(t)), 1, 1, 1)[:b] for t in pairs)
    count = max(FEW_STEPS[device.type], steps_at_once(options, device) * options.batch_size // b)
    step = build(config, ranks, auto)
    ours = repeated(step, (line, sketch), BOTH, count)
    paper = repeated(PaperStep(config, device), (line, sketch), BOTH, count)
    times = interleaved({"paper": paper, "ours": ours, "limit": limit.convolve}, options)
    name, speeds = f"batch {b}, {auto}", {n: rates(times[n], b * count) for n in ("ours", "paper")}
    report.add(name, speeds["ours"], speeds["paper"], "images/s", PAPER)
    spent, papers = (milliseconds(times[n], count) for n in ("ours", "paper"))
    report.add(f"{name}: a step", spent, papers, "ms", PAPER)
    work, most = rates(times["ours"], flops * b * count / 1e12), rates(times["limit"], limit.flops / 1e12)
    report.add(f"{name}: share of the limit", work, most, "TFLOP/s", limit.name)
    if device.type == "cuda":
        _idle(report, device, {"ours": ours, "paper": paper}, times, count, f"{name}: ", PAPER)
    return median(speeds["ours"])


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether memory was the cause; the error of a CUDA graph that could not be captured hides it in its context."""
    return error is not None and (isinstance(error, torch.OutOfMemoryError) or _out_of_memory(error.__context__))


def _memory(report: BenchReport, ranks: Ranks, auto: str, config: Config) -> None:
    """Peak memory of a step, less what is there before the first one. On CPUs each needs a process of its own."""
    jobs = [(kind, auto, report.options) for kind in ("idle", "separate", "joint", "paper")]
    idle, *peaks = map(_peak, jobs) if ranks.device.type == "cuda" else in_new_processes(_peak, jobs)
    separate, joint, papers = ([(peak - idle) / 1e6] for peak in peaks)
    report.add("peak memory, separate backward of D", separate, papers, "MB", PAPER)
    report.add("peak memory, joint backward of D", joint, separate, "MB", "separate backwards")


def _peak(job: tuple[str, str, BenchOptions]) -> int:
    """Bytes at the peak of some steps; "idle": before the first."""
    kind, precision, options = job
    ranks = Ranks(expect_world_size=1)
    device, config = ranks.device, settings(options.batch_size, options.preset)
    pairs = batch(options.batch_size, options.size, device, channels=config.data.channels)
    free(device)  # of the job before
    if kind == "joint":
        config = joint(config)
    # Eagerly: the memory of a CUDA graph is not in the figure that CUDA gives.
    step = PaperStep(config, device) if kind == "paper" else build(config, ranks, precision, capture=False)
    go = repeated(step, pairs, BOTH, 2 * FEW_STEPS[device.type])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if kind != "idle":
        go()
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else memory()[1]


def _losses(report: BenchReport, ranks: Ranks, auto: str, config: Config) -> None:
    """How far the losses of the fast precision move away from those of float32, beside what rounding alone does."""
    options, device = report.options, ranks.device
    size, fast = min(options.size, LOSS_SIZE), "bf16" if auto == "no" else auto
    # Without dropout and noise, whose random numbers would make a larger difference.
    config = replace(config, generator=replace(config.generator, dropout=0.0, noise=0))
    pairs = [
        batch(options.batch_size, size, device, first=options.batch_size * i, channels=config.data.channels)
        for i in range(2)
    ]

    def curve(step: Step | PaperStep) -> list[dict[str, float]]:
        return [repeated(step, pairs[i % len(pairs)])() for i in range(options.loss_steps)]

    curves = {kind: curve(build(config, ranks, precision)) for kind, precision in (("float32", "no"), ("fast", fast))}
    curves["paper"] = curve(PaperStep(config, device, tf32=False))
    window = np.ones(min(MEAN_STEPS, options.loss_steps)) / min(MEAN_STEPS, options.loss_steps)
    for loss in ("loss/g", "loss/d"):
        means = {k: np.convolve([step[loss] for step in curve], window, "valid") for k, curve in curves.items()}
        ours, papers = ([float(np.max(np.abs(means[k] / means["float32"] - 1))) * 100] for k in ("fast", "paper"))
        name = f"{loss}: {fast} beside float32, {options.loss_steps} steps"
        report.add(name, ours, papers, "%", "rounding alone: paper's beside our float32")
    report.note(
        f"losses: largest deviation of their mean over {MEAN_STEPS} steps; {size} px, no dropout, same weights, data"
    )
