"""Batch inference: a run's generator over shards, a folder or images, shared by the ranks; then the scores."""

import math
import shutil
import zlib
from collections.abc import Iterator, Sequence
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
from dist_sketch.core.folders import Lock
from dist_sketch.core.part import PARTS, Part
from dist_sketch.core.places import Place
from dist_sketch.core.precision import AUTOCAST, full_float32, resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.core.saved import read_infer, read_not_drawn, read_scores
from dist_sketch.core.words import plain, tell
from dist_sketch.core.workers import check_count
from dist_sketch.data import pixels
from dist_sketch.data.looks import WHY_INPUT, warn
from dist_sketch.data.recipe import listed, told
from dist_sketch.data.shards import Sample
from dist_sketch.data.sources import open_source, reference_shards
from dist_sketch.inference import output, parts
from dist_sketch.inference.options import MOST_OUTPUT_PX, MOST_SOURCE_PX, DenoiseOverride, InferOptions
from dist_sketch.inference.postprocess import Postprocess, worker_map
from dist_sketch.model import networks, pretrained

T = TypeVar("T")


class LeftOut(UserError):
    """Inputs that could not be read; all others are drawn. `sentences` say which, and why."""

    def __init__(self, message: str, sentences: list[str]):
        super().__init__(message)
        self.sentences = sentences


def infer(run: Path, source: Place | Sequence[Place], out: Path, options: InferOptions) -> dict[str, Any] | None:
    """Draws every input exactly once, over all ranks, into `out`; never writes into `run`.

    Args:
        source: shards (a folder or an address), a folder of images, or one or more images.

    Returns:
        The contents of metrics.json where the drawings are scored, else None; the same on all ranks.

    Raises:
        LeftOut: inputs cannot be read; it comes when all others are drawn and scored, and infer.json has these as
            `left_out`. With `options.skip_bad` they are only named, unless nothing could be drawn.
        UserError: anything else that the user can mend.
    """
    if options.batch_size < 1:
        raise SharedError(f"--batch-size {options.batch_size}: must be at least 1")
    check_count(options.workers, 0)
    part = Part.parse(options.part) if options.part else None
    inputs = open_source(
        source,
        options.split,
        fit=options.fit,
        usual=pretrained.fit_of(run),
        invert=options.invert,
        where=options.where,
    )
    with (
        Lock(out) as lock,
        worker_map(options.workers, len(inputs)) as run_in_workers,
        Ranks(timeout_s=options.rank_timeout_s) as ranks,
    ):
        # Rank 0 chooses for all: a run in training may save a newer checkpoint at any moment.
        weights = ranks.main_decides(lambda: pretrained.find_weights(run, options.step))
        model = pretrained.SketchGenerator.load(run, weights).to(ranks.device).to(memory_format=torch.channels_last)
        output_px = _output_px(options.output_size, model.size)
        if not 0 <= options.seed < 2**63:
            raise SharedError(f"--seed {options.seed}: must be from 0 to 2^63 - 1")
        if options.mode == "paper":
            try:
                networks.check_config(model.config, model.size, batch=1)
            except UserError as e:
                raise SharedError(
                    f"--mode paper: draws one picture at a time, which the norm {model.config.norm!r} cannot do at "
                    f"{model.size} px; use --mode running"
                ) from e
        overrides = {f.name: v for f in fields(DenoiseOverride) if (v := getattr(options.denoise, f.name)) is not None}
        settings = replace(model.denoise, **overrides).check()
        its_data = model.saved["facts"].get("manifest_sha256")
        about: dict[str, Any] = {
            "run": str(run.resolve()),
            "step": model.step,
            "weights_sha256": ranks.main_decides(lambda: fileio.sha256(pretrained.weights_file(weights[0]))),
            "config": cfg.to_dict(model.config),
            "input": str(inputs.path.resolve()),
            "inputs": inputs.sha256,
            "files": [str(file.resolve()) for file in inputs.files],
            "split": options.split,
            "where": options.where,
            "size": model.size,
            "output_size": options.output_size,
            "format": options.format,
            "denoise": cfg.to_dict(settings),
            "mode": {"statistics": options.mode, "seed": options.seed, "precision": options.precision},
            "fit": inputs.fit,
            "invert": options.invert,
            "packed_px": inputs.packed_px,
            "scores": options.scores,
            "reference": ranks.main_decides(lambda: reference_shards(model.config, inputs.path)),
            "chosen": model.chosen,
            "chosen_on_these": model.chosen and options.split == "val" and inputs.sha256 == its_data,
        }
        if not ranks.main_decides(lambda: output.make_room(out, inputs.files or [inputs.path], part, about, lock)):
            if ranks.is_main:
                print(f"{out}: part {options.part} is drawn already; nothing to do")
            return None
        scores = None
        if inputs.has_sketch and options.scores:
            from dist_sketch.inference.scoring import Scores  # only where it is needed: it takes a second to import

            scores = Scores(options.fid_weights, ranks, about["reference"], len(inputs), model.size)
        draw = partial(_draw, model, options, resolve_precision(options.precision, ranks.device), ranks.device)
        whole = part.share(len(inputs)) if part else range(len(inputs))
        share = ranks.share(len(whole))
        mine = whole[share.start : share.stop]
        batches = [mine[i : i + options.batch_size] for i in range(0, len(mine), options.batch_size)]
        finish = Postprocess(out=out, denoise=settings, format=options.format, output_px=output_px, fit=inputs.fit)

        names: list[str] = []
        left_out: list[str] = []

        def begin(numbers: range) -> tuple[list[int], list[Sample], list[Tensor], Iterator[Tensor]]:
            most_px = MOST_SOURCE_PX if output_px is None else math.inf
            good, bad = inputs.read_good(numbers, model.size, model.config.data.channels, most_px)
            left_out.extend(bad)
            items = list(good.values())
            raw = [pixels.to_rgb(x) for x in draw(items)] if items else []
            return list(good), items, raw, finish.start(run_in_workers, items, raw)

        begun = map(begin, progress_bar(batches, "drawing", disable=not ranks.is_main))
        for indices, items, raw, finished in _behind(begun):
            clean = list(finished)
            names += [i.name for i in items]
            if scores is not None and items:
                scores.add(indices, items, raw, clean, inputs.fit)
        names, left_out = (
            [text for found in ranks.gather_to_main(own) or [] for text in found] for own in (names, left_out)
        )
        states = ranks.gather_to_main(scores.state()) if scores is not None else None
        seen = _joined(ranks.gather_to_main(inputs.looks) or [])
        not_drawn = {
            "left_out": left_out,
            "skip_bad": options.skip_bad,
            "passed_over": inputs.passed_over,
            "looks": seen,
        }

        def close() -> dict[str, Any] | None:
            for line in told(inputs.passed_over):
                print(f"passed over: {line}")
            _tell_looks(seen, inputs.packed_px, model.size)
            if part is None:
                if not names:  # as when a disk is gone: what was drawn before may stay
                    _tell_left_out(out, not_drawn, names)
                return output.finish(out, about | {"names": names} | not_drawn, states)
            for sentence in left_out:  # `merge` ends with the code that says so, because it has to come to its turn
                tell(f"left out: {sentence}")
            fileio.write_json(_not_drawn_file(out, part), not_drawn)
            parts.save(out, part, names, states)
            return None

        result = ranks.main_decides(close)
        if part is None:
            ranks.main_decides(lambda: _tell_left_out(out, not_drawn, names))
        return result


def merge(out: Path) -> dict[str, Any] | None:
    """Joins parts that separate jobs have drawn; the result is the same as if one job had drawn everything.

    A second call does nothing, because a job may be started twice.

    Returns:
        The contents of metrics.json where the input has sketches, else None.

    Raises:
        UserError: a part is missing or damaged, or parts were scored with different weights.
    """
    with Lock(out) as lock:
        output.lock_for_merge(out, lock)
        return _merge(out)


def _merge(out: Path) -> dict[str, Any] | None:
    there = read_infer(out)
    if "names" in there:
        shutil.rmtree(out / PARTS, ignore_errors=True)
        _tell_left_out(out, there, there["names"])
        return read_scores(out)
    about, names, states = parts.load(out)
    total = there["parts"]
    found = [read_not_drawn(_not_drawn_file(out, Part(k + 1, total))) for k in range(total)]
    not_drawn = {
        "left_out": [sentence for one in found for sentence in one.get("left_out", [])],
        "skip_bad": all(one.get("skip_bad", False) for one in found),
        "passed_over": found[0].get("passed_over", {}),
        "looks": _joined([one.get("looks", {}) for one in found]),
    }
    try:
        result = output.finish(out, about | {"names": names} | not_drawn, states)
    except ValueError as e:
        raise UserError(f"{out}: its parts do not match ({e}); draw them again, all with the same FID weights") from e
    shutil.rmtree(out / PARTS)
    _tell_left_out(out, not_drawn, names)
    return result


def _behind(begun: Iterator[T]) -> Iterator[T]:
    """Yields one batch late, so that files are written while the next batch is drawn."""
    return (one for one, _ in pairwise(chain[Any](begun, [None])))


def _output_px(text: str, size: int) -> int | None:
    if text in ("network", "source"):
        return size if text == "network" else None
    if text.isdecimal() and 1 <= int(text) <= MOST_OUTPUT_PX:
        return int(text)
    raise SharedError(f"--output-size {text}: must be network, source, or a number of px up to {MOST_OUTPUT_PX}")


@torch.no_grad()
def _draw(net: nn.Module, options: InferOptions, precision: str, device: torch.device, items: list[Sample]) -> Tensor:
    """uint8 (B, C, size, size)."""
    dtype = AUTOCAST.get(precision)
    lines = pixels.to_float(torch.stack([i.line for i in items]).to(device)).to(memory_format=torch.channels_last)
    with full_float32(device) if dtype is None else torch.autocast(device.type, dtype):
        if options.mode == "running":
            return _in_8_bits(net.eval()(lines))
        net.train()
        drawn = []
        for item, line in zip(items, lines, strict=True):
            torch.manual_seed(options.seed ^ zlib.crc32(item.name.encode()))  # the same on any rank
            drawn.append(_in_8_bits(net(line[None])))
        return torch.cat(drawn)


def _in_8_bits(drawn: Tensor) -> Tensor:
    if not drawn.isfinite().all():
        raise UserError(
            "the generator draws values that are no numbers, which would be black pages: its weights are damaged, or "
            "too large for its arithmetic; draw from another step (--step), or with --precision no"
        )
    return pixels.to_uint8(drawn).cpu()


def _joined(found: list[dict[str, list[str]]]) -> dict[str, list[str]]:
    """What all ranks or parts have seen: kind -> names, in the inputs' order."""
    return {k: names for k in WHY_INPUT if (names := [name for one in found for name in one.get(k, [])])}


def _tell_looks(seen: dict[str, list[str]], packed_px: int | None, size: int) -> None:
    """Says what the inputs seem to be, if that is not what generators are made for."""
    warn(seen, WHY_INPUT, "input")
    if packed_px not in (None, size):
        tell(
            f"warning: the shards were packed at {packed_px} px, and the generator draws {size} px: lines and real "
            f"sketches are resized, so the scores are not those of {size} px (pack --size {size})"
        )


def _not_drawn_file(out: Path, part: Part) -> Path:
    """Where a part keeps what it could not draw, for `merge`."""
    return parts.file_of(out, part).with_suffix(".json")


def _tell_left_out(out: Path, not_drawn: dict[str, Any], names: list[str]) -> None:
    """Names the inputs that were left out. The others have these `names`.

    Raises:
        LeftOut: there are such inputs, unless the user wants them to be skipped and others are drawn.
    """
    left_out = not_drawn.get("left_out", [])
    if not left_out:
        return
    count = f"{len(left_out)} input{'s' if len(left_out) > 1 else ''}"
    if not_drawn.get("skip_bad") and names:
        print(plain(f"{out}: left out, because {count} could not be read:{listed(left_out)}"))
        return
    raise LeftOut(
        f"{out}: {count} could not be read:{listed(left_out)}\n"
        f"{'all others are drawn' if names else 'nothing is drawn'}; repair or remove these, and draw again"
        f"{', or leave them out with --skip-bad' if names else ''}",
        left_out,
    )
