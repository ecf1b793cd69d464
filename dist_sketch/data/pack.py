"""Packs pairs into WebDataset tars with a manifest, reproducibly byte for byte, in one process or in parts.

Formats: shards/README.md. A sample is three consecutive members KEY.json, KEY.line.png, KEY.sketch.png. The index says
where it is: the `length` bytes at `offset` are a small tar of that sample.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import write_json
from dist_sketch.core.folders import refuse_file_name, refuse_foreign, refuse_others, replaced
from dist_sketch.core.part import PARTS, Part
from dist_sketch.core.workers import check_count
from dist_sketch.data import card, looks, pack_parts
from dist_sketch.data.labels import columns, labelled, warn_of_others
from dist_sketch.data.layouts import SPLITS, turns
from dist_sketch.data.manifest import FORMAT, MANIFEST, Fit, files_of, read_index, read_manifest
from dist_sketch.data.prepare import Pictures, Result, prepare_all
from dist_sketch.data.progress import progress
from dist_sketch.data.recipe import FilePair, Problem, Recipe, pairs, passed_over, told, unusable
from dist_sketch.data.shard_writer import Block, describe, write
from dist_sketch.data.verify import verify

REPLACE = "; --force replaces them"
# Of what a manifest's settings may lack
DEFAULTS = {"fit": "squash", "invert": False, "freehand": "none", "direction": "AtoB", "test_fraction": 0.0}


class Listed(NamedTuple):
    """What a recipe has."""

    pairs: list[FilePair]  # split by split
    problems: list[Problem]
    passed_over: dict[str, dict[str, int]]


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
    merge: bool = False,
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
        merge: take the samples from the parts that `pack_part` has made with the same settings; `out` gets the bytes
            that it would have without parts, and the parts are gone.

    Raises:
        UserError: a setting is out of range, `out` exists, more than `skip_bad` files cannot be used, or the disk is
            full; or a part is missing, damaged or of another packing.
    """
    check_settings(size, shard_mb, shard_count, skip_bad, freehand, workers)
    pictures = Pictures(size=size, fit=fit, invert=invert, freehand=freehand)
    look = partial(_look, out, force, parts=merge)
    look()
    found, problems, others = _listed(recipe)
    results: Generator[Result, None, None]
    if merge:
        results = pack_parts.results(out, pack_parts.plan_of(recipe, pictures, found, problems), found)
    else:
        results = prepare_all(found, recipe.root, pictures, workers)
    splits, seen = {}, looks.Looks()
    try:
        with replaced(out, look) as folder:
            with progress("merging" if merge else "packing", len(found)) as advance, closing(results):
                for split, group in groupby(found, key=lambda pair: pair.split):
                    chosen = list(group)
                    blocks = _good(islice(results, len(chosen)), problems, skip_bad, seen, advance)
                    shards = write(blocks, folder, split, shard_mb * 1e6, shard_count)
                    if shards:
                        labels = columns(chosen, [key for samples in shards.values() for key, _ in samples])
                        splits[split] = describe(folder, split, shards, chosen[0].sketch is not None, labels)
            if len(problems) > skip_bad:
                raise _too_many(recipe, problems, skip_bad)
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
                    **_chosen(pictures, recipe),
                },
                "skipped": [asdict(p) for p in problems],
                "passed_over": others,
                "looks": seen.found,
                "splits": splits,
            }
            write_json(folder / MANIFEST, manifest)
            card.write(folder, manifest, recipe.description)
    except OSError as e:
        raise UserError(f"{out}: cannot be written ({e.strerror or e})") from e
    looks.warn(seen.found, looks.reasons(turns(recipe.layout)))
    return manifest


def pack_part(
    recipe: Recipe,
    out: Path,
    part: Part,
    *,
    pictures: Pictures,
    skip_bad: int = 0,
    workers: int | None = None,
    force: bool = False,
) -> bool:
    """Makes one part of what `pack` packs with the same settings, in the folder `out`, for `pack(merge=True)`.

    Returns:
        False if this part was there already.

    Raises:
        UserError: as `pack`; or this part is there, and damaged or of another packing (`force` replaces it).
    """
    check_settings(pictures.size, 1, 0, skip_bad, pictures.freehand, workers)
    _look(out, force, parts=True)
    found, problems, _ = _listed(recipe)
    plan, folder = pack_parts.plan_of(recipe, pictures, found, problems), pack_parts.folder_of(out, part)
    if not force and pack_parts.is_packed(folder, plan):
        return False
    own = [found[i] for i in part.share(len(found))]
    try:
        with replaced(folder) as new:
            with closing(prepare_all(own, recipe.root, pictures, workers)) as results:
                with progress(f"packing {part.name}", len(own)) as advance:
                    problems += pack_parts.write(new, plan, own, _counted(results, advance))
            if len(problems) > skip_bad:
                raise _too_many(recipe, problems, skip_bad)
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror or e})") from e
    return True


def dry_run(recipe: Recipe, skip_bad: int) -> None:
    """Says what `pack` would pack, with the first pairs, and writes nothing.

    Raises:
        UserError: more than `skip_bad` files have no partner or cannot be used, as far as their names tell.
    """
    found, problems, _ = _listed(recipe)
    for line in card.first_pairs(recipe, found):
        print(line)
    if len(problems) > skip_bad:
        raise _too_many(recipe, problems, skip_bad)


def _listed(recipe: Recipe) -> Listed:
    """Lists the pairs, and says what they are and what is passed over."""
    found, problems = pairs(recipe)
    found, note = labelled(recipe, found)
    others = passed_over(recipe)
    for line in card.told(recipe, found):
        print(line)
    for line in told(others):
        print(f"passed over: {line}")
    if note:
        print(note)
    found.sort(key=lambda pair: SPLITS.index(pair.split))
    return Listed(found, problems, others)


def _counted(results: Iterable[Result], advance: Callable[[], None]) -> Iterator[Result]:
    for result in results:
        advance()
        yield result


def _too_many(recipe: Recipe, problems: list[Problem], skip_bad: int) -> UserError:
    return unusable(recipe.root, problems, f", or leave out up to N of them with --skip-bad N (now {skip_bad})")


def _chosen(pictures: Pictures, recipe: Recipe) -> dict[str, Any]:
    """Settings that make other pictures, as far as they are not at their defaults."""
    freehand = "none" if pictures.freehand is None else pictures.freehand
    chosen = {
        "fit": pictures.fit,
        "invert": pictures.invert,
        "freehand": freehand,
        "direction": recipe.direction,
        "test_fraction": recipe.test_fraction,
    }
    return {name: value for name, value in chosen.items() if value != DEFAULTS[name]}


def _look(out: Path, force: bool, parts: bool) -> None:
    """Refuses to replace `out` if it holds anything that `pack` has not written, or shards without `force`.

    Args:
        parts: it may hold parts.
    """
    refuse_file_name(out, "--out is a folder of shards and a manifest")
    if not parts and (out / PARTS).is_dir() and not (out / MANIFEST).exists():
        raise UserError(f"{out}: holds parts of a packing: join them with --merge, or remove {out / PARTS}")
    ours = [PARTS] if parts else []
    refuse_foreign(out, "a folder of shards", MANIFEST, *ours, leftovers=False)
    if (out / MANIFEST).exists():
        if not force:
            raise UserError(f"{out}: holds packed shards already; remove it or choose another --out")
        try:
            ours += [*files_of(read_manifest(out)), *card.ours(out)]
        except UserError as e:
            raise UserError(f"{e} into another --out, because --force replaces only what it can read") from e
    refuse_others(out, "these shards", ours)
    if parts:
        pack_parts.refuse_foreign_parts(out)


def check_settings(
    size: int, shard_mb: float, shard_count: int, skip_bad: int, freehand: int | None, workers: int | None
) -> None:
    """Raises UserError if a setting of `pack` is out of range."""
    if size % 64 or not 64 <= size <= 2048:
        raise UserError(f"size = {size}: must be a multiple of 64 from 64 to 2048 (the networks halve it six times)")
    if not 0 < shard_mb < math.inf:
        raise UserError(f"shard_mb = {shard_mb}: must be above 0")
    for name, value in (("shard_count", shard_count), ("skip_bad", skip_bad), ("freehand", freehand or 0)):
        if value < 0:
            raise UserError(f"{name} = {value}: must be 0 or more")
    check_count(workers, 1)


def _good(
    results: Iterable[Result],
    problems: list[Problem],
    skip_bad: int,
    seen: looks.Looks,
    advance: Callable[[], None],
) -> Iterator[Block]:
    """Yields the samples and collects the problems, and what the pairs look like.

    When there are too many problems it reads on, so that all can be named.
    """
    for result in results:
        advance()
        if isinstance(result, list):
            problems.extend(result)
        elif len(problems) <= skip_bad:
            pair, block, look = result
            seen.add(pair.split, pair.name, look)
            yield pair.key, block


def holds(shards: Path, recipe: Recipe, pictures: Pictures) -> bool:
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
        raise UserError(f"{e}{REPLACE}") from e
    packed = {(split, key) for split in manifest["splits"] for key in read_index(shards, manifest, split).keys}
    found, _ = pairs(recipe)
    wanted = {(p.split, p.key) for p in found}
    left_out = len(manifest["skipped"])
    if gone := packed - wanted:
        raise UserError(f"{shards}: holds other pairs, as {'/'.join(min(gone))}, which is not there any more{REPLACE}")
    if manifest["size"] != pictures.size or len(wanted - packed) > left_out:
        raise UserError(
            f"{shards}: holds shards of other pairs or of another size ({len(packed)} at {manifest['size']} px, "
            f"asked for: {len(wanted)} at {pictures.size} px){REPLACE}"
        )
    had, asked = (DEFAULTS | s for s in (manifest["settings"], _chosen(pictures, recipe)))
    if differ := [f"{name} {had[name]}" for name, value in asked.items() if had[name] != value]:
        raise UserError(f"{shards}: holds shards packed with {' and '.join(differ)}{REPLACE}")
    warn_of_others(shards, manifest, recipe, found)
    return True
