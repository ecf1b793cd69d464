"""Batch inference: a run's generator over shards, a folder or one image, shared by the ranks; then the scores."""

import shutil
import zlib
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import track as progress_bar
from torch import Tensor, nn

from dist_sketch.core import config as cfg
from dist_sketch.core import fileio
from dist_sketch.core.errors import SharedError, UserError
from dist_sketch.core.folders import refuse_foreign
from dist_sketch.core.precision import AUTOCAST, full_float32, resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import pixels
from dist_sketch.data.manifest import MANIFEST, manifest_hash
from dist_sketch.data.shards import Sample
from dist_sketch.data.sources import open_source
from dist_sketch.inference import parts
from dist_sketch.inference.options import MOST_OUTPUT_PX, DenoiseOverride, InferOptions
from dist_sketch.inference.parts import Part
from dist_sketch.inference.postprocess import Postprocess, worker_map
from dist_sketch.inference.scoring import FOLDERS, ReferenceSketches, finish_scores, make_scorer, reference_shards
from dist_sketch.model import networks, pretrained

T = TypeVar("T")


def infer(run: Path, source: Path, out: Path, options: InferOptions) -> dict[str, Any] | None:
    """Draws every input exactly once, over all ranks, into `out`; never writes into `run`.

    Returns:
        The contents of metrics.json where the input has sketches, else None; the same on all ranks.

    Raises:
        UserError: anything that the user can mend.
    """
    for name, least in (("batch_size", 1), ("workers", 0)):
        if (value := getattr(options, name)) is not None and value < least:
            raise SharedError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    part = Part.parse(options.part) if options.part else None
    with worker_map(options.workers) as run_in_workers, Ranks() as ranks:
        # Rank 0 chooses for all: a run in training may save a newer checkpoint at any moment.
        weights = ranks.main_decides(lambda: pretrained.find_weights(run, options.step))
        model = pretrained.SketchGenerator.load(run, weights).to(ranks.device).to(memory_format=torch.channels_last)
        output_px = _output_px(options.output_size, model.size)
        if options.mode == "paper":
            networks.check_config(model.config, model.size, batch=1)
        inputs = open_source(source, options.split, model.size, model.config.data.channels)
        overrides = {f.name: v for f in fields(DenoiseOverride) if (v := getattr(options.denoise, f.name)) is not None}
        settings = replace(model.denoise, **overrides).check()
        about: dict[str, Any] = {
            "run": str(run.resolve()),
            "step": model.step,
            "weights_sha256": ranks.main_decides(lambda: fileio.sha256(pretrained.weights_file(weights[0]))),
            "config": cfg.to_dict(model.config),
            "input": str(source.resolve()),
            "split": options.split,
            "size": model.size,
            "output_size": options.output_size,
            "format": options.format,
            "denoise": cfg.to_dict(settings),
            "mode": {"statistics": options.mode, "seed": options.seed, "precision": options.precision},
            "reference": ranks.main_decides(lambda: reference_shards(model.config, source)),
            "chosen": model.chosen,
            "chosen_on_these": ranks.main_decides(
                lambda: model.chosen and options.split == "val" and _is_data_of(model, source)
            ),
        }
        if not ranks.main_decides(lambda: _make_room(out, source, part, about)):
            if ranks.is_main:
                print(f"{out}: part {options.part} is drawn already; nothing to do")
            return None
        scorer = make_scorer(options.fid_weights, ranks) if inputs.has_sketch else None
        reference = ReferenceSketches(about["reference"], len(inputs), model.size)
        draw = partial(_draw, model, options, resolve_precision(options.precision, ranks.device), ranks.device)
        whole = part.share(len(inputs)) if part else range(len(inputs))
        share = ranks.share(len(whole))
        mine = whole[share.start : share.stop]
        batches = [mine[i : i + options.batch_size] for i in range(0, len(mine), options.batch_size)]
        finish = Postprocess(out=out, denoise=settings, format=options.format, output_px=output_px)

        def begin(indices: range) -> tuple[range, list[Sample], list[Tensor], Iterator[Tensor]]:
            items = [inputs.read(i) for i in indices]
            raw = [pixels.to_rgb(x) for x in draw(items)]
            return indices, items, raw, finish.start(run_in_workers, items, raw)

        names: list[str] = []
        begun = map(begin, progress_bar(batches, "drawing", disable=not ranks.is_main))
        for indices, items, raw, finished in _behind(begun):
            clean = list(finished)
            own = [i.name for i in items]
            names += own
            if scorer is not None:
                sketches = [i.sketch for i in items if i.sketch is not None]
                images = {"raw": raw, "denoised": clean, "line": [i.line for i in items], "real": sketches}
                scorer.add(indices, own, {k: torch.stack([pixels.to_rgb(i) for i in v]) for k, v in images.items()})
                reference.add(scorer, indices)
        names = [name for found in ranks.gather_to_main(names) or [] for name in found]
        states = ranks.gather_to_main(scorer.state()) if scorer is not None else None
        if part:
            ranks.main_decides(lambda: parts.save(out, part, names, states))
            return None
        return ranks.main_decides(lambda: _finish(out, about | {"names": names}, states))


def merge(out: Path) -> dict[str, Any] | None:
    """Joins parts that separate jobs have drawn; the result is the same as if one job had drawn everything.

    A second call does nothing, because a job may be started twice.

    Returns:
        The contents of metrics.json where the input has sketches, else None.

    Raises:
        UserError: a part is missing or damaged, or parts were scored with different weights.
    """
    if "names" in fileio.read_json(out / "infer.json", default={}):
        shutil.rmtree(out / parts.PARTS, ignore_errors=True)
        result: dict[str, Any] | None = fileio.read_json(out / "metrics.json", default=None)
        return result
    about, names, states = parts.load(out)
    try:
        result = _finish(out, about | {"names": names}, states)
    except ValueError as e:
        raise UserError(f"{out}: its parts do not match ({e}); draw them again, all with the same FID weights") from e
    shutil.rmtree(out / parts.PARTS)
    return result


def _behind(begun: Iterator[T]) -> Iterator[T]:
    """Yields one batch late, so that files are written while the next batch is drawn."""
    return (one for one, _ in pairwise(chain[Any](begun, [None])))


def _output_px(text: str, size: int) -> int | None:
    if text in ("network", "source"):
        return size if text == "network" else None
    if text.isdecimal() and 1 <= int(text) <= MOST_OUTPUT_PX:
        return int(text)
    raise UserError(f"--output-size {text}: must be network, source, or a number of px up to {MOST_OUTPUT_PX}")


def _make_room(out: Path, source: Path, part: Part | None, about: dict[str, Any]) -> bool:
    """Removes the pictures of an earlier inference, but not other jobs' parts; returns whether there is work left."""
    if source.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out}: holds the input {source}, which would be overwritten; choose another --out")
    if part:
        return parts.claim(out, part, about)
    refuse_foreign(out, "an output folder", "infer.json")
    for folder in (*FOLDERS, parts.PARTS):
        shutil.rmtree(out / folder, ignore_errors=True)
    for file in ("metrics.json", "report.html"):
        (out / file).unlink(missing_ok=True)
    # Marks the folder as ours, so that an inference that was killed can be started again.
    fileio.write_json(out / "infer.json", {"state": "running"})
    return True


@torch.no_grad()
def _draw(net: nn.Module, options: InferOptions, precision: str, device: torch.device, items: list[Sample]) -> Tensor:
    """uint8 (B, C, size, size)."""
    dtype = AUTOCAST.get(precision)
    lines = pixels.to_float(torch.stack([i.line for i in items]).to(device)).to(memory_format=torch.channels_last)
    with full_float32(device) if dtype is None else torch.autocast(device.type, dtype):
        if options.mode == "running":
            return pixels.to_uint8(net.eval()(lines)).cpu()
        net.train()
        drawn = []
        for item, line in zip(items, lines, strict=True):
            torch.manual_seed(options.seed ^ zlib.crc32(item.name.encode()))  # the same on any rank
            drawn.append(pixels.to_uint8(net(line[None])).cpu())
        return torch.cat(drawn)


def _is_data_of(model: pretrained.SketchGenerator, source: Path) -> bool:
    """Whether these are the shards that the model was trained and validated on."""
    is_shards = (source / MANIFEST).is_file()
    return is_shards and manifest_hash(source) == model.saved["facts"].get("manifest_sha256")


def _finish(out: Path, about: dict[str, Any], states: list[Any] | None) -> dict[str, Any] | None:
    result = finish_scores(out, states, "memory") if states else None
    fileio.write_json(out / "infer.json", about)  # written last: its "names" mark the output as complete
    return result
