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
from dist_sketch.bench.figures import BenchReport, figure
from dist_sketch.bench.options import BenchOptions
from dist_sketch.bench.timing import interleaved, rates
from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config, DenoiseConfig
from dist_sketch.core.precision import AUTOCAST, resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import pack, pixels, recipe
from dist_sketch.data.sources import InputImage
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.inference import infer as inference
from dist_sketch.inference.options import InferOptions
from dist_sketch.inference.postprocess import Postprocess, PostprocessPool
from dist_sketch.model import pretrained

NAME = "infer"


MOST_IMAGES = 64


PLAIN = "plain eager float32 loop"


def run(report: BenchReport, folder: Path) -> None:
    """All figures of inference."""
    options, ranks = report.options, Ranks(expect_world_size=1)
    generator, shards = _generator(options, folder / "generator"), _lines(options, folder)
    fast = resolve_precision("auto", ranks.device)
    _whole(report, ranks, generator, shards, fast, folder)
    _parts(report, ranks, generator, fast, folder)
    report.note(NAME, f"{PLAIN}: the same shards, net, noise removal and files, one image after the other")


def _generator(options: BenchOptions, folder: Path) -> Path:
    """An untrained generator as `dist-sketch checkpoint export` writes one."""
    torch.manual_seed(0)
    saved = {"config": cfg.to_dict(Config()), "facts": {"size": options.size, "step": 0}}
    pretrained.SketchGenerator(saved, {"denoise": cfg.to_dict(DenoiseConfig())}).save_pretrained(folder)
    return folder


def _lines(options: BenchOptions, folder: Path) -> Path:
    """Lines without sketches, so that nothing is scored; each drawing several times, under names of its own."""
    source, count = folder / "lines" / "val_line", min(options.images, MOST_IMAGES)
    source.mkdir(parents=True)
    drawn = [synth.draw(0, i, options.size)[0] for i in range(min(count, options.pairs))]
    for i in range(count):
        drawn[i % len(drawn)].convert("RGB").save(source / f"{i}.png")
    with contextlib.redirect_stdout(io.StringIO()):
        pack.pack(recipe.load(str(folder / "lines")), folder / "shards", size=options.size)
    return folder / "shards"


def _whole(report: BenchReport, ranks: Ranks, generator: Path, shards: Path, fast: str, folder: Path) -> None:
    """From shards to files."""
    options, count = report.options, min(report.options.images, MOST_IMAGES)

    def ours(precision: Literal["no", "bf16"]) -> Callable[[], object]:
        chosen = InferOptions(split="val", batch_size=options.batch_size, precision=precision)

        def go() -> None:
            with contextlib.redirect_stdout(io.StringIO()):  # its progress bar
                inference.infer(generator, shards, folder / f"out-{precision}", chosen)

        return go

    def plain() -> None:
        shutil.rmtree(folder / "out-plain", ignore_errors=True)
        paper_way.infer(generator, shards, "val", folder / "out-plain", options.batch_size, ranks.device)

    times = interleaved({"plain": plain, "no": ours("no"), "bf16": ours("bf16")}, options)
    for precision in ("no", "bf16"):
        chosen = " (what auto picks)" if precision == fast else ""
        report.add(
            figure(
                NAME,
                f"shards to files, {precision}{chosen}",
                rates(times[precision], count),
                rates(times["plain"], count),
                unit="images/s",
                baseline_name=PLAIN,
            )
        )


def _parts(report: BenchReport, ranks: Ranks, generator: Path, fast: str, folder: Path) -> None:
    """Where the time goes: the net alone, noise removal and files alone."""
    options, device = report.options, ranks.device
    plain = pretrained.SketchGenerator.load(generator).to(device)
    ours = pretrained.SketchGenerator.load(generator).to(device).to(memory_format=torch.channels_last)
    images = torch.stack(
        [pixels.from_image(synth.draw(0, i, options.size)[0], 3) for i in range(min(options.batch_size, 8))]
    )
    lines = pixels.to_float(images).to(device)
    dtype = AUTOCAST.get(fast)

    @torch.no_grad()
    def draw_plain() -> Tensor:
        return plain(lines)

    @torch.no_grad()
    def draw() -> Tensor:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            return ours(lines.to(memory_format=torch.channels_last))

    raw = [x.contiguous() for x in pixels.to_uint8(draw_plain()).cpu()]
    items = [InputImage(str(i), line, None, (options.size, options.size)) for i, line in enumerate(images)]
    files, plain_files = folder / "finish", folder / "finish-plain"
    for name in ("raw", "sketch", "line"):
        (plain_files / name).mkdir(parents=True)

    def finish_plain() -> None:
        for item, drawn in zip(items, raw, strict=True):
            paper_way.finish(plain_files, item.name, item.line, drawn, plain.denoise)

    with PostprocessPool(None) as finishers:
        finish = Postprocess(out=files, denoise=plain.denoise, format="png", output_px=options.size)
        variants: dict[str, Callable[[], object]] = {
            "draw plain": draw_plain,
            "draw": draw,
            "finish plain": finish_plain,
            "finish": lambda: list(finishers.start(finish, items, raw)),
        }
        times = interleaved(variants, options)
    count, unit = len(images), "images/s"
    report.add(
        figure(
            NAME,
            f"drawing alone, {fast}, channels last",
            rates(times["draw"], count),
            rates(times["draw plain"], count),
            unit=unit,
            baseline_name="eager float32, default memory format",
        ),
        figure(
            NAME,
            "noise removal and files alone, in processes",
            rates(times["finish"], count),
            rates(times["finish plain"], count),
            unit=unit,
            baseline_name="one image after the other",
        ),
    )
