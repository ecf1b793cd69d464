"""`dist-sketch bench infer`: drawing, noise removal and files beside a plain eager float32 loop."""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dist_sketch import baseline, hub, pack, pixels, recipe, synth
from dist_sketch import config as cfg
from dist_sketch import infer as inference
from dist_sketch.config import Config
from dist_sketch.denoise import Denoise
from dist_sketch.finish import Finish, Finishers
from dist_sketch.inputs import Item
from dist_sketch.measure import Options, Report, figure, interleaved, rates
from dist_sketch.ranks import Ranks
from dist_sketch.step import AUTOCAST, resolve_precision

NAME = "infer"
MOST_IMAGES = 64
PLAIN = "plain eager float32 loop"


def run(report: Report, folder: Path) -> None:
    """All figures of inference."""
    options, ranks = report.options, Ranks(expect_world_size=1)
    generator, shards = _generator(options, folder / "generator"), _lines(options, folder)
    fast = resolve_precision("auto", ranks.device)
    _whole(report, ranks, generator, shards, fast, folder)
    _parts(report, ranks, generator, fast, folder)
    report.note(NAME, f"{PLAIN}: the same shards, net, noise removal and files, one image after the other")


def _generator(options: Options, folder: Path) -> Path:
    """An untrained generator as `dist-sketch checkpoint export` writes one."""
    torch.manual_seed(0)
    saved = {"config": cfg.to_dict(Config()), "facts": {"size": options.size, "step": 0}}
    hub.SketchGenerator(saved, {"denoise": cfg.to_dict(Denoise())}).save_pretrained(folder)
    return folder


def _lines(options: Options, folder: Path) -> Path:
    """Lines without sketches, so that nothing is scored; each drawing several times, under names of its own."""
    source, count = folder / "lines" / "val_line", min(options.images, MOST_IMAGES)
    source.mkdir(parents=True)
    drawn = [synth.draw(0, i, options.size)[0] for i in range(min(count, options.pairs))]
    for i in range(count):
        drawn[i % len(drawn)].convert("RGB").save(source / f"{i}.png")
    with contextlib.redirect_stdout(io.StringIO()):
        pack.pack(recipe.load(str(folder / "lines")), folder / "shards", size=options.size)
    return folder / "shards"


def _whole(report: Report, ranks: Ranks, generator: Path, shards: Path, fast: str, folder: Path) -> None:
    """From shards to files."""
    options, count = report.options, min(report.options.images, MOST_IMAGES)

    def ours(precision: Literal["no", "bf16"]) -> Callable[[], object]:
        chosen = inference.Options(split="val", batch_size=options.batch_size, precision=precision)

        def go() -> None:
            with contextlib.redirect_stdout(io.StringIO()):  # its progress bar
                inference.infer(generator, shards, folder / f"out-{precision}", chosen)

        return go

    def plain() -> None:
        shutil.rmtree(folder / "out-plain", ignore_errors=True)
        baseline.infer(generator, shards, "val", folder / "out-plain", options.batch_size, ranks.device)

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


def _parts(report: Report, ranks: Ranks, generator: Path, fast: str, folder: Path) -> None:
    """Where the time goes: the net alone, noise removal and files alone."""
    options, device = report.options, ranks.device
    plain = hub.SketchGenerator.load(generator).to(device)
    ours = hub.SketchGenerator.load(generator).to(device).to(memory_format=torch.channels_last)
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
    items = [Item(str(i), line, None, (options.size, options.size)) for i, line in enumerate(images)]
    files, plain_files = folder / "finish", folder / "finish-plain"
    for name in ("raw", "sketch", "line"):
        (plain_files / name).mkdir(parents=True)

    def finish_plain() -> None:
        for item, drawn in zip(items, raw, strict=True):
            baseline.finish(plain_files, item.name, item.line, drawn, plain.denoise)

    with Finishers(None) as finishers:
        finish = Finish(out=files, denoise=plain.denoise, format="png", output_px=options.size)
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
