"""Packs pairs into WebDataset tars with a manifest, reproducibly byte for byte, and verifies them against it.

Formats: shards/README.md. A sample is three consecutive members KEY.json, KEY.line.png, KEY.sketch.png. The manifest's
index says where it is: the `length` bytes at `offset` are a small tar of that sample.
"""

import hashlib
import io
import json
import math
import tarfile
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from threading import Event
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dist_sketch.core import cpus
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import open_regular, write_json
from dist_sketch.core.folders import refuse_file_name, refuse_foreign, refuse_others, replaced, sync
from dist_sketch.core.workers import check_count
from dist_sketch.core.workers import workers as processes
from dist_sketch.data import looks
from dist_sketch.data.fit import fitted
from dist_sketch.data.freehand import version_of_image
from dist_sketch.data.image_files import BadImage, read_image
from dist_sketch.data.labels import columns, labelled, warn_of_others
from dist_sketch.data.manifest import COLUMNS, FORMAT, MANIFEST, Fit, read_manifest
from dist_sketch.data.recipe import SPLITS, FilePair, Problem, Recipe, listed, pairs, passed_over, told, unusable

DEFAULTS = {"fit": "squash", "invert": False, "freehand": "none"}  # of what a manifest's settings may lack
PAIRS_A_WORKER = 32  # with fewer, starting a process takes longer than it saves

PackedSample = dict[str, Any]  # {"__key__": str, "json": bytes, "line.png": bytes, "sketch.png": bytes}
Prepared = tuple[FilePair, PackedSample, looks.Look]
Span = tuple[str, int, int]  # a sample's key, offset and length in a shard


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
            with _progress("packing", len(found)) as advance, prepared as results:
                for split, group in groupby(found, key=lambda pair: pair.split):
                    chosen = list(group)
                    samples = _good(islice(results, len(chosen)), problems, skip_bad, seen, advance)
                    shards = _write(samples, folder, split, int(shard_mb * 1e6), shard_count)
                    if shards:
                        splits[split] = _describe(folder, shards, has_sketch=chosen[0].sketch is not None)
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


def _write(samples: Iterable[PackedSample], folder: Path, split: str, limit: int, count: int) -> dict[str, list[Span]]:
    """Writes the split's shards; returns what each file holds."""
    # Imported here, because it imports torch, which takes each worker process 3 s.
    from webdataset import TarWriter

    shards: dict[str, list[Span]] = {}
    spans: list[Span] = []
    used = 0
    with ExitStack() as open_shard:
        for sample in samples:
            # a member has a header (and a PAX header if the name needs one) and is padded to whole blocks
            header = 512 if sample["__key__"].isascii() and len(sample["__key__"]) < 80 else 2048
            need = sum(header + len(v) + -len(v) % 512 for k, v in sample.items() if k != "__key__")
            if not shards or (count and len(spans) == count) or used + need > limit:
                open_shard.close()
                name, spans, used = f"{split}-{len(shards):06d}.tar", [], tarfile.RECORDSIZE
                shards[name] = spans
                file = open_shard.enter_context(open(folder / name, "xb"))
                # Fixed owner and time make the bytes reproducible; PAX allows long and non-ASCII names.
                about = {"user": "dist_sketch", "group": "dist_sketch", "mtime": 0, "format": "PAX_FORMAT"}
                tar = open_shard.enter_context(TarWriter(file, encoder=False, **about))
            start = tar.tarstream.offset
            tar.write(sample)
            spans.append((sample["__key__"], start, tar.tarstream.offset - start))
            used += need
    for name in shards:
        sync(folder / name)
    return shards


def _describe(folder: Path, shards: dict[str, list[Span]], has_sketch: bool) -> dict[str, Any]:
    """A split's part of the manifest; the hashes are those of the files on the disk."""
    index: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    files = []
    for number, (name, spans) in enumerate(shards.items()):
        size = (folder / name).stat().st_size
        hashes, whole = _hashes(folder / name, spans, size)
        for (key, offset, length), digest in zip(spans, hashes, strict=True):
            for column, value in zip(COLUMNS, (key, number, offset, length, digest), strict=True):
                index[column].append(value)
        files.append({"file": name, "bytes": size, "sha256": whole, "count": len(spans)})
    return {"count": len(index["key"]), "has_sketch": has_sketch, "shards": files, "index": index}


def _hashes(
    shard: Path, spans: Collection[Span], size: int, over: Callable[[], bool] = lambda: False
) -> tuple[list[str], str]:
    """SHA-256 of each sample, and of the file's first `size` bytes. The samples follow each other from its beginning.

    Args:
        over: asked often; once it is true, nobody needs the result.
    """
    whole, hashes = hashlib.sha256(), []
    lengths = [length for _, _, length in spans]
    with open_regular(shard) as file:
        for length in (*lengths, size - sum(lengths)):
            digest = hashlib.sha256()
            # a damaged manifest may name any length
            while length > 0 and not over() and (block := file.read(min(length, 2**22))):
                digest.update(block)
                whole.update(block)
                length -= len(block)
            hashes.append(digest.hexdigest())
    return hashes[:-1], whole.hexdigest()


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


def verify(shards: Path) -> dict[str, int]:
    """Reads every shard and compares lengths, counts and hashes with the manifest; returns {split: count}.

    Raises:
        UserError: names the first ten differences by shard and key.
    """
    manifest = read_manifest(shards)
    jobs: list[tuple[dict[str, Any], dict[Span, str]]] = []
    for split in manifest["splits"].values():
        hashes: list[dict[Span, str]] = [{} for _ in split["shards"]]
        for key, number, offset, length, digest in zip(*(split["index"][name] for name in COLUMNS), strict=True):
            hashes[number][key, offset, length] = digest
        jobs += zip(split["shards"], hashes, strict=True)
    problems: list[str] = []
    # Threads are enough, because hashing and reading release the GIL.
    threads, over = min(8, len(cpus.usable())), Event()
    with _progress("verifying", len(jobs)) as advance, ThreadPoolExecutor(threads) as pool:
        try:
            for found in pool.map(lambda job: _verify_shard(shards, job[0], job[1], over.is_set), jobs):
                problems += found
                advance()
        finally:  # also after Ctrl-C, and a shard may be very long
            over.set()
    extra = {p.name for p in shards.glob("*.tar")} - {shard["file"] for shard, _ in jobs}
    problems += [f"{name}: is not in the manifest" for name in sorted(extra)]
    if problems:
        lines = listed(problems)
        raise UserError(f"{shards}: the shards differ from the manifest:{lines}\ncopy or pack them again")
    return {name: split["count"] for name, split in manifest["splits"].items()}


def _verify_shard(
    folder: Path, shard: dict[str, Any], expected: dict[Span, str], over: Callable[[], bool]
) -> list[str]:
    """What differs from the manifest's entry `shard` and the hashes that its index gives for the samples."""
    name, path = shard["file"], folder / shard["file"]
    try:
        hashes, whole = _hashes(path, expected, shard["bytes"], over)
        size = path.stat().st_size
    except OSError as e:
        return [f"{name}: {'is missing' if isinstance(e, FileNotFoundError) else f'cannot be read ({e.strerror})'}"]
    problems = [] if size == shard["bytes"] else [f"{name}: has {size} bytes, not {shard['bytes']}"]
    for ((key, offset, length), digest), now in zip(expected.items(), hashes, strict=True):
        if now != digest:
            why = "end too early" if offset + length > size else "have another SHA-256"
            problems.append(f"{name}: key {key}: its bytes {why}")
    if not problems and whole != shard["sha256"]:
        problems = [f"{name}: has another SHA-256, outside its samples"]
    return problems


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar; yields the function that advances it by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
