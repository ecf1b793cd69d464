"""Packs pairs into WebDataset tars with a manifest, reproducibly byte for byte.

Formats: shards/README.md. A sample is three consecutive members KEY.json, KEY.line.png, KEY.sketch.png. The manifest's
index says where it is: the `length` bytes at `offset` are a small tar of that sample.
"""

import io
import json
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from dist_sketch.core import cpus
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import write_json
from dist_sketch.core.folders import refuse_file_name, refuse_foreign, refuse_others, replaced
from dist_sketch.core.workers import check_count
from dist_sketch.core.workers import workers as processes
from dist_sketch.data import looks
from dist_sketch.data.fit import fitted
from dist_sketch.data.freehand import version_of_image
from dist_sketch.data.image_files import BadImage, read_image
from dist_sketch.data.labels import columns, labelled, warn_of_others
from dist_sketch.data.manifest import FORMAT, MANIFEST, Fit, read_manifest
from dist_sketch.data.progress import progress
from dist_sketch.data.recipe import SPLITS, FilePair, Problem, Recipe, pairs, passed_over, told, unusable
from dist_sketch.data.shard_writer import PackedSample, describe, write
from dist_sketch.data.verify import verify

DEFAULTS = {"fit": "squash", "invert": False, "freehand": "none"}  # of what a manifest's settings may lack
PAIRS_A_WORKER = 32  # with fewer, starting a process takes longer than it saves

Prepared = tuple[FilePair, PackedSample, looks.Look]


def pack(
    recipe: Recipe,
    out: Path,
    *,
    size: int = 256,
    shard_mb: float = 64,
    shard_count: int = 0,
    skip_bad: int = 0,
    fit: Fit = "squash",
    invert: bool = False,
    freehand: int | None = None,
    workers: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Packs all pairs, brought to `size` x `size`, into the new folder `out`; returns its manifest.

    The folder appears when it is complete. With `workers` above 1 (default: the CPUs this process may use) processes
    are spawned: a script that calls this needs the usual `if __name__ == "__main__":`.

    Args:
        shard_mb: upper limit of a shard in 10^6 bytes (one sample always fits).
        shard_count: upper limit of samples in a shard; 0: only bytes count.
        skip_bad: up to this many files that cannot be used are left out and listed in the manifest.
        fit: how pages that are not square become squares, as `data.fit.fitted` does it.
        invert: the lines (not the sketches) are light on dark, and are packed dark on light.
        freehand: a seed: each line is packed as its first freehand version of that seed (`data.freehand.version`).
        force: replace `out` if it holds shards.

    Raises:
        UserError: a setting is out of range, `out` exists, more than `skip_bad` files cannot be used, or the disk is
            full.
    """
    _check_settings(size, shard_mb, shard_count, skip_bad, freehand, workers)
    look = partial(_look, out, force)
    look()
    found, problems = pairs(recipe)
    found, note = labelled(recipe, found)
    others = passed_over(recipe)
    for line in told(others):
        print(f"passed over: {line}")
    if note:
        print(note)
    splits, seen = {}, looks.Looks()
    try:
        with replaced(out, look) as folder:
            found.sort(key=lambda pair: SPLITS.index(pair.split))
            prepare = partial(_prepare, root=recipe.root, size=size, fit=fit, invert=invert, freehand=freehand)
            prepared = closing(_prepare_all(found, prepare, workers))
            with progress("packing", len(found)) as advance, prepared as results:
                for split, group in groupby(found, key=lambda pair: pair.split):
                    chosen = list(group)
                    samples = _good(islice(results, len(chosen)), problems, skip_bad, seen, advance)
                    shards = write(samples, folder, split, int(shard_mb * 1e6), shard_count)
                    if shards:
                        splits[split] = describe(folder, shards, has_sketch=chosen[0].sketch is not None)
                        if labels := columns(chosen, splits[split]["index"]["key"]):
                            splits[split]["labels"] = labels
            if len(problems) > skip_bad:
                advice = f", or leave out up to N of them with --skip-bad N (now {skip_bad})"
                raise unusable(recipe.root, problems, advice)
            if not splits:
                raise UserError(f"{recipe.root}: no pair is left to pack")
            manifest = {
                "format": FORMAT,
                "size": size,
                "recipe": recipe.name,
                "license": recipe.license,
                "settings": {
                    "resize": f"bicubic, antialiased{', aspect not kept' if fit == 'squash' else ''}",
                    "shard_mb": float(shard_mb),
                    "shard_count": shard_count,
                    "val_fraction": recipe.val_fraction,
                    **_chosen(fit, invert, freehand),
                },
                "skipped": [asdict(p) for p in problems],
                "passed_over": others,
                "looks": seen.found,
                "splits": splits,
            }
            write_json(folder / MANIFEST, manifest)
    except OSError as e:
        raise UserError(f"{out}: cannot be written ({e.strerror or e})") from e
    looks.warn(seen.found)
    return manifest


def _chosen(fit: str, invert: bool, freehand: int | None) -> dict[str, Any]:
    """Settings that make other pictures; without defaults, so that the manifest's hash is that of older versions."""
    chosen = {"fit": fit, "invert": invert, "freehand": "none" if freehand is None else freehand}
    return {name: value for name, value in chosen.items() if value != DEFAULTS[name]}


def _look(out: Path, force: bool) -> None:
    """Refuses to replace `out` if it holds anything that `pack` has not written, or shards without `force`."""
    refuse_file_name(out, "--out is a folder of shards and a manifest")
    refuse_foreign(out, "a folder of shards", MANIFEST, leftovers=False)
    if not (out / MANIFEST).exists():
        return
    if not force:
        raise UserError(f"{out}: holds packed shards already; remove it or choose another --out")
    try:
        splits = read_manifest(out)["splits"].values()
    except UserError as e:
        raise UserError(f"{e} into another --out, because --force replaces only what it can read") from e
    refuse_others(out, "these shards", [MANIFEST, *(shard["file"] for split in splits for shard in split["shards"])])


def _check_settings(
    size: int, shard_mb: float, shard_count: int, skip_bad: int, freehand: int | None, workers: int | None
) -> None:
    if size % 64 or not 64 <= size <= 2048:
        raise UserError(f"size = {size}: must be a multiple of 64 from 64 to 2048 (the networks halve it six times)")
    if not 0 < shard_mb < math.inf:
        raise UserError(f"shard_mb = {shard_mb}: must be above 0")
    for name, value in (("shard_count", shard_count), ("skip_bad", skip_bad), ("freehand", freehand or 0)):
        if value < 0:
            raise UserError(f"{name} = {value}: must be 0 or more")
    check_count(workers, 1)


def _prepare_all(
    chosen: list[FilePair], prepare: Callable[[FilePair], Prepared | list[Problem]], workers: int | None
) -> Generator[Prepared | list[Problem], None, None]:
    """Prepares pairs in worker processes, in order, with a bounded number of results waiting to be written."""
    n = min(workers or len(cpus.usable()), math.ceil(len(chosen) / PAIRS_A_WORKER))
    if n <= 1:
        yield from map(prepare, chosen)
        return
    # Processes, because Pillow's encoder holds the GIL; spawned, because a fork would copy locks that torch's and
    # rich's threads hold.
    with processes(n, "spawn", "--workers 1") as pool:
        futures = (pool.submit(prepare, pair) for pair in chosen)
        waiting = deque(islice(futures, 8 * n))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(islice(futures, 1))


def _prepare(
    pair: FilePair, root: Path, size: int, fit: Fit, invert: bool, freehand: int | None
) -> Prepared | list[Problem]:
    """Reads, fits, looks at and encodes a pair."""
    about: dict[str, Any] = {"name": pair.name, "split": pair.split}
    if pair.labels:
        about["labels"] = pair.labels
    sample: PackedSample = {"__key__": pair.key}
    problems, files, pictures = [], [], []
    for side, path in (("line", pair.line), ("sketch", pair.sketch)):
        if path is None:
            continue
        file = path.relative_to(root).as_posix()
        try:
            image = read_image(path)
        except BadImage as e:
            problems.append(Problem(file, e.why))
            continue
        about[side] = {"file": file, "width": image.width, "height": image.height, "mode": image.info["mode"]}
        buffer = io.BytesIO()
        files.append(image.size)
        turn = invert and side == "line"
        picture = fitted(image, files[0], size, fit, invert=turn)  # if the line is bad, nothing is packed
        pictures.append(picture)  # the clean line, because one in thick strokes looks like a sketch
        if side == "line" and freehand is not None:
            picture = version_of_image(picture, freehand, 0, pair.key)
        picture.save(buffer, "PNG")
        sample[f"{side}.png"] = buffer.getvalue()
    sample["json"] = json.dumps(about, ensure_ascii=False).encode()
    return problems or (pair, sample, looks.look(files, pictures))


def _good(
    results: Iterable[Prepared | list[Problem]],
    problems: list[Problem],
    skip_bad: int,
    seen: looks.Looks,
    advance: Callable[[], None],
) -> Iterator[PackedSample]:
    """Yields the samples and collects the problems, and what the pairs look like.

    When there are too many problems it reads on, so that all can be named.
    """
    for result in results:
        advance()
        if isinstance(result, list):
            problems.extend(result)
        elif len(problems) <= skip_bad:
            pair, sample, look = result
            seen.add(pair.split, pair.name, look)
            yield sample


def holds(
    shards: Path, recipe: Recipe, size: int, fit: Fit = "squash", invert: bool = False, freehand: int | None = None
) -> bool:
    """Whether `shards` already holds good shards of the recipe's pairs.

    Raises:
        UserError: it holds damaged shards, or shards of other pairs, of another size, fit, inversion or freehand seed.
    """
    if not (shards / MANIFEST).is_file():
        return False
    manifest = read_manifest(shards)
    try:
        verify(shards)
    except UserError as e:
        raise UserError(f"{e}; --force replaces them") from e
    packed = {(split, key) for split, part in manifest["splits"].items() for key in part["index"]["key"]}
    found, _ = pairs(recipe)
    wanted = {(p.split, p.key) for p in found}
    left_out = len(manifest["skipped"])
    if manifest["size"] != size or len(wanted - packed) > left_out or len(packed) > len(wanted):
        raise UserError(
            f"{shards}: holds shards of other pairs or of another size ({len(packed)} at {manifest['size']} px, "
            f"asked for: {len(wanted)} at {size} px); --force replaces them"
        )
    had, asked = (DEFAULTS | s for s in (manifest["settings"], _chosen(fit, invert, freehand)))
    if differ := [f"{name} {had[name]}" for name, value in asked.items() if had[name] != value]:
        raise UserError(f"{shards}: holds shards packed with {' and '.join(differ)}; --force replaces them")
    warn_of_others(shards, manifest["splits"], recipe, found)
    return True
