"""`dist-sketch bench infer`: drawing, noise removal and files beside a plain eager float32 loop."""

import contextlib
import io
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dist_sketch.bench import paper_way
from dist_sketch.bench.measure import BenchReport, Variants, interleaved, rates
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
from dist_sketch.inference.postprocess import Postprocess, worker_map
from dist_sketch.model import pretrained

MOST_IMAGES = 64
PLAIN = "plain eager float32 loop"


def run(report: BenchReport, folder: Path) -> None:
    """Adds all figures of inference."""
    device = Ranks(expect_world_size=1).device
    generator, shards = write_generator(report.options, folder), write_lines(report.options, folder)
    fast = resolve_precision("auto", device)
    _whole(report, device, generator, shards, fast, folder)
    report.write()
    _parts(report, device, generator, fast, folder)
    report.note(f"{PLAIN}: the same shards, net, noise removal and files, one image after the other")


def write_generator(options: BenchOptions, folder: Path) -> Path:
    """Writes an untrained generator, as `dist-sketch checkpoint export` does."""
    torch.manual_seed(0)
    saved = {"config": cfg.to_dict(Config()), "facts": {"size": options.size, "step": 0}}
    pretrained.SketchGenerator(saved, {"denoise": cfg.to_dict(DenoiseConfig())}).save_pretrained(folder / "generator")
    return folder / "generator"


def write_lines(options: BenchOptions, folder: Path) -> Path:
    """Packs lines without sketches, so that nothing is scored."""
    source, count = folder / "lines" / "val_line", min(options.images, MOST_IMAGES)
    source.mkdir(parents=True)
    for i in range(count):
        synth.draw(0, i, options.size)[0].convert("RGB").save(source / f"{i}.png")
    pack.pack(recipe.load(str(folder / "lines")), folder / "shards", size=options.size)
    return folder / "shards"


def _whole(report: BenchReport, device: torch.device, generator: Path, shards: Path, fast: str, folder: Path) -> None:
    """From shards to files."""
    options, count = report.options, min(report.options.images, MOST_IMAGES)

    def ours(precision: Literal["no", "bf16"]) -> None:
        chosen = InferOptions(split="val", batch_size=options.batch_size, precision=precision)
        with contextlib.redirect_stdout(io.StringIO()):  # hides its progress bar
            inference.infer(generator, shards, folder / f"out-{precision}", chosen)

    plain = partial(paper_way.infer, generator, shards, "val", folder / "out-plain", options.batch_size, device)
    times = interleaved({"plain": plain, "no": partial(ours, "no"), "bf16": partial(ours, "bf16")}, options)
    for precision in ("no", "bf16"):
        chosen = " (what auto picks)" if precision == fast else ""
        speed, baseline = rates(times[precision], count), rates(times["plain"], count)
        report.add(f"shards to files, {precision}{chosen}", speed, baseline, "images/s", PLAIN)


@torch.no_grad()
def _parts(report: BenchReport, device: torch.device, generator: Path, fast: str, folder: Path) -> None:
    """The net alone; noise removal and files alone."""
    options, count = report.options, min(report.options.batch_size, 8)
    plain = pretrained.SketchGenerator.load(generator).to(device)
    ours = pretrained.SketchGenerator.load(generator).to(device).to(memory_format=torch.channels_last)
    lines, _ = batch(count, options.size, device)

    def draw() -> Tensor:
        with torch.autocast(device.type, AUTOCAST.get(fast, torch.bfloat16), enabled=fast in AUTOCAST):
            return ours(lines.to(memory_format=torch.channels_last))

    raw = [x.contiguous() for x in pixels.to_uint8(plain(lines)).cpu()]
    items = [Sample(str(i), x, None, (options.size, options.size)) for i, x in enumerate(pixels.to_uint8(lines).cpu())]

    finish_plain = partial(paper_way.finish, folder / "finish-plain", plain.denoise)
    with worker_map(None) as run_in_workers:
        finish = Postprocess(out=folder / "finish", denoise=plain.denoise, format="png", output_px=options.size)
        variants: Variants = {
            "draw plain": partial(plain, lines),
            "draw": draw,
            "finish plain": lambda: list(map(finish_plain, items, raw)),
            "finish": lambda: list(finish.start(run_in_workers, items, raw)),
        }
        times = interleaved(variants, options)
    speeds = {name: rates(values, count) for name, values in times.items()}
    name, about = f"drawing alone, {fast}, channels last", "eager float32, default memory format"
    report.add(name, speeds["draw"], speeds["draw plain"], "images/s", about)
    name, about = "noise removal and files alone, in processes", "one image after the other"
    report.add(name, speeds["finish"], speeds["finish plain"], "images/s", about)
