"""Batch inference: a run's generator over shards, a folder or one image, shared by the ranks; then the scores."""

import shutil
import zlib
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import track as progress_bar
from torch import Tensor, nn

from dist_sketch.core import config as cfg
from dist_sketch.core import fileio
from dist_sketch.core.config import Config
from dist_sketch.core.errors import SharedError, UserError
from dist_sketch.core.folders import refuse_foreign
from dist_sketch.core.precision import AUTOCAST, full_float32, resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import loader, pixels
from dist_sketch.data.image_files import read_image
from dist_sketch.data.manifest import MANIFEST, manifest_hash, read_manifest
from dist_sketch.data.shards import Shards
from dist_sketch.data.sources import InputImage, open_source
from dist_sketch.inference import parts
from dist_sketch.inference.options import MOST_OUTPUT_PX, DenoiseOverride, InferOptions
from dist_sketch.inference.parts import Part
from dist_sketch.inference.postprocess import Postprocess, PostprocessPool
from dist_sketch.metrics import inception
from dist_sketch.metrics.scorer import Scorer, write_scores
from dist_sketch.model import networks, pretrained

T = TypeVar("T")


FOLDERS = ("line", "raw", "sketch", "real")


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
    with PostprocessPool(options.workers) as finishers, Ranks() as ranks:
        return _infer(run, source, out, options, part, finishers, ranks)


def _infer(
    run: Path,
    source: Path,
    out: Path,
    options: InferOptions,
    part: Part | None,
    finishers: PostprocessPool,
    ranks: Ranks,
) -> dict[str, Any] | None:
    # One choice for all ranks: a run that goes on may save a newer checkpoint in between.
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
        "weights_sha256": ranks.main_decides(lambda: pretrained.weights_sha256(weights[0])),
        "config": cfg.to_dict(model.config),
        "input": str(source.resolve()),
        "split": options.split,
        "size": model.size,
        "output_size": options.output_size,
        "format": options.format,
        "denoise": cfg.to_dict(settings),
        "mode": {"statistics": options.mode, "seed": options.seed, "precision": options.precision},
        "reference": ranks.main_decides(lambda: _reference(model.config, source)),
        "chosen": model.chosen,
        "chosen_on_these": ranks.main_decides(
            lambda: model.chosen and options.split == "val" and _is_data_of(model, source)
        ),
    }
    if not ranks.main_decides(lambda: _make_room(out, source, part, about)):
        if ranks.is_main:
            print(f"{out}: part {options.part} is drawn already; nothing to do")
        return None
    scorer = _scorer(options.fid_weights, ranks) if inputs.has_sketch else None
    reference = _Reference(about["reference"], len(inputs), model.size)
    draw = partial(_draw, model, options, resolve_precision(options.precision, ranks.device), ranks.device)
    whole = part.share(len(inputs)) if part else range(len(inputs))
    share = ranks.share(len(whole))
    mine = whole[share.start : share.stop]
    batches = [mine[i : i + options.batch_size] for i in range(0, len(mine), options.batch_size)]

    finish = Postprocess(out=out, denoise=settings, format=options.format, output_px=output_px)

    def begin(indices: range) -> tuple[range, list[InputImage], list[Tensor], Iterator[Tensor]]:
        items = [inputs.read(i) for i in indices]
        raw = [pixels.to_rgb(x) for x in draw(items)]
        return indices, items, raw, finishers.start(finish, items, raw)

    names: list[str] = []
    begun = map(begin, progress_bar(batches, "drawing", disable=not ranks.is_main))
    for indices, items, raw, finished in _behind(begun):
        clean = list(finished)
        names += [i.name for i in items]
        if scorer is not None:
            scorer.add(indices, [i.name for i in items], _images(items, raw, clean))
            reference.add(scorer, indices)
    names = [name for found in ranks.gather(names) for name in found]
    states = ranks.gather(scorer.state()) if scorer is not None else None

    def end() -> dict[str, Any] | None:
        if part:
            parts.save(out, part, names, states)
            return None
        return _finish(out, about | {"names": names}, states)

    return ranks.main_decides(end)


def merge(out: Path) -> dict[str, Any] | None:
    """Makes one inference of parts that were drawn by jobs of their own; the same as if one job had drawn all.

    Once more, it does nothing: a job may be started again after it.

    Returns:
        The contents of metrics.json where the input has sketches, else None.

    Raises:
        UserError: a part is missing or damaged, or parts were scored with different weights.
    """
    if (out / "infer.json").is_file() and "names" in fileio.read_json(out / "infer.json"):
        shutil.rmtree(out / parts.PARTS, ignore_errors=True)
        scores = out / "metrics.json"
        return fileio.read_json(scores) if scores.is_file() else None
    about, names, states = parts.load(out)
    try:
        result = _finish(out, about | {"names": names}, states)
    except ValueError as e:
        raise UserError(f"{out}: its parts do not fit together ({e}); draw them anew on machines that are alike") from e
    shutil.rmtree(out / parts.PARTS)
    return result


def _behind(begun: Iterator[T]) -> Iterator[T]:
    """Each one after the next has been begun: while that is drawn, this one is finished elsewhere."""
    previous = next(begun, None)
    for one in begun:
        assert previous is not None
        yield previous
        previous = one
    if previous is not None:
        yield previous


def evaluate(out: Path, fid_weights: Path | None) -> dict[str, Any] | None:
    """Scores the files of an output folder again and writes OUT/metrics.json.

    Files of another size than the network's are resized to it first, which changes the scores a little.

    Raises:
        UserError: `out` was not made by `infer`, a file of it is gone, or its input had no sketches.
    """
    if not (out / "infer.json").is_file():
        raise UserError(f"{out}: is not an output folder of `dist-sketch infer` (no infer.json)")
    about = fileio.read_json(out / "infer.json")
    if "names" not in about:
        raise UserError(f"{out}: its inference is not finished; start it again (parts: `dist-sketch merge {out}`)")
    if not (out / "real").is_dir():
        raise UserError(f"{out}: its input had no sketches, so that there is nothing to compare the drawings with")
    with Ranks() as ranks:
        return _evaluate(out, about, fid_weights, ranks)


def _evaluate(out: Path, about: dict[str, Any], fid_weights: Path | None, ranks: Ranks) -> dict[str, Any]:
    scorer, size = _scorer(fid_weights, ranks), about["size"]
    suffix = {"line": "png", "raw": about["format"], "sketch": about["format"], "real": "png"}
    key = {"line": "line", "raw": "raw", "sketch": "denoised", "real": "real"}

    def read(folder: str, name: str) -> Tensor:
        image = pixels.from_image(read_image(out / folder / f"{name}.{suffix[folder]}"), 3)
        return pixels.resize(image, size, size)

    names, mine = about["names"], ranks.share(len(about["names"]))
    reference = _Reference(about["reference"], len(names), size)
    for start in progress_bar(range(mine.start, mine.stop, 16), "scoring", disable=not ranks.is_main):
        indices = range(start, min(start + 16, mine.stop))
        chosen = [names[i] for i in indices]
        scorer.add(indices, chosen, {key[f]: torch.stack([read(f, n) for n in chosen]) for f in FOLDERS})
        reference.add(scorer, indices)
    states = ranks.gather(scorer.state())
    return ranks.main_decides(lambda: _write_scores(out, states, "files"))


def _output_px(text: str, size: int) -> int | None:
    if text in ("network", "source"):
        return size if text == "network" else None
    if text.isdecimal() and 1 <= int(text) <= MOST_OUTPUT_PX:
        return int(text)
    raise UserError(f"--output-size {text}: must be network, source, or a number of px up to {MOST_OUTPUT_PX}")


def _make_room(out: Path, source: Path, part: Part | None, about: dict[str, Any]) -> bool:
    """Removes an older output's pictures, so that no files of two inferences lie side by side; never other parts.

    Returns:
        Whether there is something to draw.
    """
    if source.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out}: holds the input {source}, which would be overwritten; choose another --out")
    if part:
        return parts.claim(out, part, about)
    refuse_foreign(out, "an output folder", "infer.json")
    for folder in (*FOLDERS, parts.PARTS):
        shutil.rmtree(out / folder, ignore_errors=True)
    for file in ("metrics.json", "report.html"):
        (out / file).unlink(missing_ok=True)
    # Marks the folder as ours: an inference that was killed can be started again.
    fileio.write_json(out / "infer.json", {"state": "running"})
    return True


def _scorer(fid_weights: Path | None, ranks: Ranks) -> Scorer:
    weights = inception.find(fid_weights)
    net = inception.load(weights, ranks.device) if weights else None
    return Scorer(net, None if net else f"no Inception weights on this machine; {inception.WAYS}", ranks.device)


@torch.no_grad()
def _draw(
    net: nn.Module, options: InferOptions, precision: str, device: torch.device, items: list[InputImage]
) -> Tensor:
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


def _images(items: list[InputImage], raw: list[Tensor], clean: list[Tensor]) -> dict[str, Tensor]:
    return {
        "raw": torch.stack(raw),
        "denoised": torch.stack(clean),
        "line": torch.stack([pixels.to_rgb(i.line) for i in items]),
        "real": torch.stack([pixels.to_rgb(i.sketch) for i in items if i.sketch is not None]),
    }


def _is_data_of(model: pretrained.SketchGenerator, source: Path) -> bool:
    """Whether these are the shards that the run was trained and validated on."""
    is_shards = (source / MANIFEST).is_file()
    return is_shards and manifest_hash(source) == model.saved["facts"].get("manifest_sha256")


def _reference(config: Config, source: Path) -> str | None:
    """The shards whose training sketches show what a perfect artist would score: the run's if there, else the input's.

    An exported generator does not know where the run's lay.
    """
    for folder in (config.data.shards, source):
        if folder is not None and (folder / MANIFEST).is_file():
            train = read_manifest(folder)["splits"].get("train")
            if train is not None and train["has_sketch"]:
                return str(folder.resolve())
    return None


class _Reference:
    """As many real training sketches as there are inputs, in a fixed random order."""

    def __init__(self, folder: str | None, count: int, size: int):
        self._size = size
        self._shards = None
        if folder is not None and (Path(folder) / MANIFEST).is_file():
            self._shards = Shards(Path(folder), "train")
            self._places = loader.order(len(self._shards), 0, 0, shuffle=True)[:count]

    def add(self, scorer: Scorer, indices: range) -> None:
        """Adds those that stand beside the inputs `indices`."""
        if self._shards is None:
            return
        chosen = [i for i in indices if i < len(self._places)]
        samples = [self._shards.read(int(self._places[i]), 3) for i in chosen]
        sketches = [pixels.resize(s.sketch, self._size, self._size) for s in samples if s.sketch is not None]
        if sketches:
            scorer.add_reference(chosen, torch.stack(sketches))


def _finish(out: Path, about: dict[str, Any], states: list[Any] | None) -> dict[str, Any] | None:
    result = _write_scores(out, states, "memory") if states else None
    fileio.write_json(out / "infer.json", about)  # last: with its names the output is whole
    return result


def _write_scores(out: Path, states: list[Any], source: str) -> dict[str, Any]:
    result = Scorer.result(states, source)
    write_scores(out, result)
    return result
