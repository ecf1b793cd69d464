"""`dist-sketch bench infer`: drawing, noise removal and files beside a plain eager float32 loop."""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dist_sketch.bench import paper_way
from dist_sketch.bench.measure import BenchReport, interleaved, rates
from dist_sketch.bench.options import BenchOptions
from dist_sketch.bench.step import batch
from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config, DenoiseConfig
from dist_sketch.core.precision import AUTOCAST, resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import pack, pixels, recipe
from dist_sketch.data.shards import Sample
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.inference import infer as inference
from dist_sketch.inference.options import InferOptions
from dist_sketch.inference.postprocess import Postprocess, PostprocessPool
from dist_sketch.model import pretrained

MOST_IMAGES = 64
PLAIN = "plain eager float32 loop"


def run(report: BenchReport, folder: Path) -> None:
    """Adds all figures of inference."""
    device = Ranks(expect_world_size=1).device
    generator, shards = write_generator(report.options, folder), write_lines(report.options, folder)
    fast = resolve_precision("auto", device)
    _whole(report, device, generator, shards, fast, folder)
    _parts(report, device, generator, fast, folder)
    report.note(f"{PLAIN}: the same shards, net, noise removal and files, one image after the other")


def write_generator(options: BenchOptions, folder: Path) -> Path:
    """Writes an untrained generator, as `dist-sketch checkpoint export` does."""
    torch.manual_seed(0)
    saved = {"config": cfg.to_dict(Config()), "facts": {"size": options.size, "step": 0}}
    pretrained.SketchGenerator(saved, {"denoise": cfg.to_dict(DenoiseConfig())}).save_pretrained(folder / "generator")
    return folder / "generator"


def write_lines(options: BenchOptions, folder: Path) -> Path:
    """Packs lines without sketches, so that nothing is scored. Each drawing occurs several times under other names."""
    source, count = folder / "lines" / "val_line", min(options.images, MOST_IMAGES)
    source.mkdir(parents=True)
    drawn = [synth.draw(0, i, options.size)[0] for i in range(min(count, options.pairs))]
    for i in range(count):
        drawn[i % len(drawn)].convert("RGB").save(source / f"{i}.png")
    pack.pack(recipe.load(str(folder / "lines")), folder / "shards", size=options.size)
    return folder / "shards"


def _whole(report: BenchReport, device: torch.device, generator: Path, shards: Path, fast: str, folder: Path) -> None:
    """From shards to files."""
    options, count = report.options, min(report.options.images, MOST_IMAGES)

    def ours(precision: Literal["no", "bf16"]) -> None:
        chosen = InferOptions(split="val", batch_size=options.batch_size, precision=precision)
        with contextlib.redirect_stdout(io.StringIO()):  # hides its progress bar
            inference.infer(generator, shards, folder / f"out-{precision}", chosen)

    def plain() -> None:
        shutil.rmtree(folder / "out-plain", ignore_errors=True)
        paper_way.infer(generator, shards, "val", folder / "out-plain", options.batch_size, device)

    times = interleaved({"plain": plain, "no": lambda: ours("no"), "bf16": lambda: ours("bf16")}, options)
    speeds = {name: rates(values, count) for name, values in times.items()}
    for precision in ("no", "bf16"):
        chosen = " (what auto picks)" if precision == fast else ""
        report.add(f"shards to files, {precision}{chosen}", speeds[precision], speeds["plain"], "images/s", PLAIN)


def _parts(report: BenchReport, device: torch.device, generator: Path, fast: str, folder: Path) -> None:
    """The net alone; noise removal and files alone."""
    options, count = report.options, min(report.options.batch_size, 8)
    plain = pretrained.SketchGenerator.load(generator).to(device)
    ours = pretrained.SketchGenerator.load(generator).to(device).to(memory_format=torch.channels_last)
    lines, _ = batch(count, options.size, device)
    dtype = AUTOCAST.get(fast)

    @torch.no_grad()
    def draw_plain() -> Tensor:
        return plain(lines)

    @torch.no_grad()
    def draw() -> Tensor:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            return ours(lines.to(memory_format=torch.channels_last))

    raw = [x.contiguous() for x in pixels.to_uint8(draw_plain()).cpu()]
    size = options.size, options.size
    items = [Sample(str(i), line, None, size) for i, line in enumerate(pixels.to_uint8(lines).cpu())]
    plain_files = folder / "finish-plain"
    for name in ("raw", "sketch", "line"):
        (plain_files / name).mkdir(parents=True)

    def finish_plain() -> None:
        for item, drawn in zip(items, raw, strict=True):
            paper_way.finish(plain_files, item.name, item.line, drawn, plain.denoise)

    with PostprocessPool(None) as finishers:
        finish = Postprocess(out=folder / "finish", denoise=plain.denoise, format="png", output_px=options.size)
        variants: dict[str, Callable[[], object]] = {
            "draw plain": draw_plain,
            "draw": draw,
            "finish plain": finish_plain,
            "finish": lambda: list(finishers.start(finish, items, raw)),
        }
        times = interleaved(variants, options)
    for name, key, baseline_name in (
        (f"drawing alone, {fast}, channels last", "draw", "eager float32, default memory format"),
        ("noise removal and files alone, in processes", "finish", "one image after the other"),
    ):
        speed, baseline = rates(times[key], count), rates(times[f"{key} plain"], count)
        report.add(name, speed, baseline, "images/s", baseline_name)
