"""Batch inference: a run's generator over shards, a folder or one image, shared by the ranks; then the scores."""

import math
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
from dist_sketch.core.folders import LOGS, Lock, refuse_file_name, refuse_foreign, refuse_others, tidy
from dist_sketch.core.precision import AUTOCAST, full_float32, resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.core.saved import read_infer, read_not_drawn, read_scores
from dist_sketch.core.words import tell
from dist_sketch.core.workers import check_count
from dist_sketch.data import fit, pixels
from dist_sketch.data.looks import WHY_INPUT, warn
from dist_sketch.data.manifest import MANIFEST, Fit, manifest_hash
from dist_sketch.data.recipe import listed, told
from dist_sketch.data.shards import Sample
from dist_sketch.data.sources import labels_of, open_source
from dist_sketch.inference import parts
from dist_sketch.inference.options import MOST_OUTPUT_PX, MOST_SOURCE_PX, DenoiseOverride, InferOptions
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
        UserError: anything that the user can mend. Inputs that cannot be read are named when all others are drawn and
            scored; infer.json has them as `left_out`.
    """
    if options.batch_size < 1:
        raise SharedError(f"--batch-size {options.batch_size}: must be at least 1")
    check_count(options.workers, 0)
    part = Part.parse(options.part) if options.part else None
    timeout_s = options.rank_timeout_s
    with Lock(out) as lock, worker_map(options.workers) as run_in_workers, Ranks(timeout_s=timeout_s) as ranks:
        # Rank 0 chooses for all: a run in training may save a newer checkpoint at any moment.
        weights = ranks.main_decides(lambda: pretrained.find_weights(run, options.step))
        model = pretrained.SketchGenerator.load(run, weights).to(ranks.device).to(memory_format=torch.channels_last)
        output_px = _output_px(options.output_size, model.size)
        if not 0 <= options.seed < 2**63:
            raise SharedError(f"--seed {options.seed}: must be from 0 to 2^63 - 1")
        if options.mode == "paper":
            networks.check_config(model.config, model.size, batch=1)
        channels, how = model.config.data.channels, options.fit
        inputs = open_source(source, options.split, model.size, channels, fit=how, invert=options.invert)
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
            "fit": inputs.fit,
            "invert": options.invert,
            "packed_px": inputs.packed_px,
            "reference": ranks.main_decides(lambda: reference_shards(model.config, source)),
            "chosen": model.chosen,
            "chosen_on_these": ranks.main_decides(
                lambda: model.chosen and options.split == "val" and _is_data_of(model, source)
            ),
        }
        if not ranks.main_decides(lambda: _make_room(out, source, part, about, lock)):
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
        finish = Postprocess(out=out, denoise=settings, format=options.format, output_px=output_px, fit=inputs.fit)

        names: list[str] = []
        left_out: list[str] = []

        def begin(numbers: range) -> tuple[list[int], list[Sample], list[Tensor], Iterator[Tensor]]:
            good, bad = inputs.read_good(numbers, MOST_SOURCE_PX if output_px is None else math.inf)
            left_out.extend(bad)
            items = list(good.values())
            raw = [pixels.to_rgb(x) for x in draw(items)] if items else []
            return list(good), items, raw, finish.start(run_in_workers, items, raw)

        begun = map(begin, progress_bar(batches, "drawing", disable=not ranks.is_main))
        for indices, items, raw, finished in _behind(begun):
            clean = list(finished)
            own = [i.name for i in items]
            names += own
            if scorer is not None and items:
                sketches = [i.sketch for i in items if i.sketch is not None]
                images = {"raw": raw, "denoised": clean, "line": [i.line for i in items], "real": sketches}
                scorer.add(indices, own, {k: _squares(items, v, inputs.fit) for k, v in images.items()})
                reference.add(scorer, indices)
        names, left_out = (
            [text for found in ranks.gather_to_main(own) or [] for text in found] for own in (names, left_out)
        )
        states = ranks.gather_to_main(scorer.state()) if scorer is not None else None
        seen = _joined(ranks.gather_to_main(inputs.looks) or [])
        not_drawn = {"left_out": left_out, "passed_over": inputs.passed_over, "looks": seen}

        def close() -> dict[str, Any] | None:
            for line in told(inputs.passed_over):
                print(f"passed over: {line}")
            _tell_looks(seen, inputs.packed_px, model.size)
            if part is None:
                if not names:  # as when a disk is gone: what was drawn before may stay
                    _tell_left_out(out, left_out, names)
                return _finish(out, about | {"names": names} | not_drawn, states)
            for sentence in left_out:  # `merge` ends with the code that says so, because it has to come to its turn
                tell(f"left out: {sentence}")
            fileio.write_json(_not_drawn_file(out, part), not_drawn)
            parts.save(out, part, names, states)
            return None

        result = ranks.main_decides(close)
        if part is None:
            ranks.main_decides(lambda: _tell_left_out(out, left_out, names))
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
        if (out / "infer.json").is_file():
            lock.acquire()
            _look(out)
        return _merge(out)


def _merge(out: Path) -> dict[str, Any] | None:
    there = read_infer(out)
    if "names" in there:
        shutil.rmtree(out / parts.PARTS, ignore_errors=True)
        _tell_left_out(out, there.get("left_out", []), there["names"])
        return read_scores(out)
    about, names, states = parts.load(out)
    total = there["parts"]
    found = [read_not_drawn(_not_drawn_file(out, Part(k + 1, total))) for k in range(total)]
    left_out = [sentence for one in found for sentence in one.get("left_out", [])]
    seen = _joined([one.get("looks", {}) for one in found])
    not_drawn = {"left_out": left_out, "passed_over": found[0].get("passed_over", {}), "looks": seen}
    try:
        result = _finish(out, about | {"names": names} | not_drawn, states)
    except ValueError as e:
        raise UserError(f"{out}: its parts do not match ({e}); draw them again, all with the same FID weights") from e
    shutil.rmtree(out / parts.PARTS)
    _tell_left_out(out, left_out, names)
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


def _make_room(out: Path, source: Path, part: Part | None, about: dict[str, Any], lock: Lock) -> bool:
    """Removes the pictures of an earlier inference, but not other jobs' parts; returns whether there is work left."""
    if source.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out}: holds the input {source}, which would be overwritten; choose another --out")
    if part:
        _look(out, parts.PARTS)
        lock.acquire(shared=True)  # the jobs that draw the other parts work in it, too
        with lock.turn():
            _look(out, parts.PARTS)
            return parts.claim(out, part, about)
    _look(out)
    lock.acquire()
    _look(out)  # another may have drawn there in the meantime
    tidy(out)
    there = read_infer(out)
    # If it is the same inference again, each picture stays until it is drawn anew.
    same = all(there.get(key) == value for key, value in about.items())
    if not same:  # what infer.json says of the pictures does not hold any more, even if this is killed now
        fileio.write_json(out / "infer.json", {"state": "running"})
    for folder in (parts.PARTS,) if same else (*FOLDERS, parts.PARTS):
        shutil.rmtree(out / folder, ignore_errors=True)
    for file in ("metrics.json", "report.html"):
        (out / file).unlink(missing_ok=True)
    # Marks the folder as ours, so that an inference that was killed can be started again.
    before = sorted({file.name for folder in FOLDERS for file in (out / folder).glob("*")})
    fileio.write_json(out / "infer.json", about | {"state": "running", "before": before})
    return True


def _look(out: Path, *begun: str) -> None:
    """Refuses a folder that is not an output folder, whose infer.json is not ours, or whose pictures are not all ours.

    Which pictures a finished inference has drawn is known by name, those of an unfinished one only by their kind.

    Args:
        begun: what may be there without an infer.json, if a job was killed before it wrote that.
    """
    refuse_file_name(out, "--out is the folder for all drawings: OUT/sketch and others")
    refuse_foreign(out, "an output folder", "infer.json", *begun)
    if not (out / "infer.json").exists():
        refuse_others(out, "an output folder", [LOGS, *begun])
    there, what = read_infer(out), "what an inference has drawn there"
    if there and there != {"state": "running"} and not {"run", "input", "weights_sha256"} <= there.keys():
        raise UserError(f"{out / 'infer.json'}: was not written by dist_sketch; choose another --out")
    for name in (*FOLDERS, parts.PARTS):
        folder = out / name
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise UserError(f"{folder}: is a link or a file where pictures would be written; choose another --out")
    for name in FOLDERS if there else ():
        drawn = [f".{there['format']}"] if "format" in there and name in ("raw", "sketch") else [".png", ".jpg"]
        stems = there.get("names") or [p.stem for p in (out / name).glob("*") if p.is_file()]
        refuse_others(out / name, what, [stem + suffix for stem in stems for suffix in drawn])
    files = [p.name for p in (out / parts.PARTS).glob("*-of-*") if p.suffix in (".pt", ".json")]
    refuse_others(out / parts.PARTS, what, files)


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


def _squares(items: list[Sample], images: list[Tensor], how: Fit) -> Tensor:
    """Pictures of these inputs as they are scored, uint8 (B, 3, size, size)."""
    pairs = zip(items, images, strict=True)
    return torch.stack([pixels.to_rgb(fit.with_plain_margins(image, item.source_size, how)) for item, image in pairs])


def _in_8_bits(drawn: Tensor) -> Tensor:
    if not drawn.isfinite().all():
        raise UserError(
            "the generator draws values that are no numbers, which would be black pages: its weights are damaged, or "
            "too large for its arithmetic; draw from another step (--step), or with --precision no"
        )
    return pixels.to_uint8(drawn).cpu()


def _is_data_of(model: pretrained.SketchGenerator, source: Path) -> bool:
    """Whether these are the shards that the model was trained and validated on."""
    is_shards = (source / MANIFEST).is_file()
    return is_shards and manifest_hash(source) == model.saved["facts"].get("manifest_sha256")


def _finish(out: Path, about: dict[str, Any], states: list[Any] | None) -> dict[str, Any] | None:
    """Writes the scores and infer.json, and removes pictures of inputs that were there when it was drawn before."""
    if about["left_out"]:
        states = _closed(states or [])
    result = finish_scores(out, states, "memory", about) if states else None
    # Only those that were there before: a file that was added while it drew is not ours.
    there, names = read_infer(out), set(about["names"])
    earlier = {*there.get("before", []), *(name + end for name in there.get("names", []) for end in (".png", ".jpg"))}
    for file in (out / folder / name for folder in FOLDERS for name in earlier if Path(name).stem not in names):
        file.unlink(missing_ok=True)
    if labels := labels_of(Path(about["input"]), about["split"], about["names"]):
        about["labels"] = labels
    fileio.write_json(out / "infer.json", about)  # written last: its "names" mark the output as complete
    return result


def _closed(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The scorers' states with the gaps closed that inputs leave which cannot be read."""
    numbers = sorted(i for state in states for i, _ in state["names"])
    place = {i: number for number, i in enumerate(numbers)}

    def moved(found: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        return [(place[i], value) for i, value in found]

    return [
        state
        | {"names": moved(state["names"])}
        | {part: {kind: moved(found) for kind, found in state[part].items()} for part in ("rows", "features")}
        for state in states
        if numbers
    ]


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
    return part.file(out).with_suffix(".json")


def _tell_left_out(out: Path, left_out: list[str], names: list[str]) -> None:
    """Ends with exit code 2 if inputs were left out, although all others, which have these names, are drawn."""
    if left_out:
        count = f"{len(left_out)} input{'s' if len(left_out) > 1 else ''}"
        raise UserError(
            f"{out}: {count} could not be read:{listed(left_out)}\n"
            f"{'all others are drawn' if names else 'nothing is drawn'}; repair or remove these, and draw again"
        )
