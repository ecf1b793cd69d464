"""Pairs -> WebDataset tars + manifest.json, byte for byte the same each time; and checking them against each other.

Formats: shards/README.md. A sample is three members KEY.json, KEY.line.png, KEY.sketch.png that stand together, and the
manifest's index says where: one `pread` of `length` bytes at `offset` is a small tar of that sample.
"""

import hashlib
import io
import json
import math
import os
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import write_json
from dist_sketch.core.folders import refuse_foreign, replaced
from dist_sketch.data.image_files import BadImage, read_image
from dist_sketch.data.manifest import COLUMNS, FORMAT, MANIFEST, read_manifest
from dist_sketch.data.recipe import SPLITS, FilePair, Problem, Recipe, pairs, refuse

_LISTED = 10  # problems named in one error


_PAIRS_A_WORKER = 32  # fewer than that are not worth starting a process for


PackedSample = dict[str, Any]  # {"__key__": str, "json": bytes, "line.png": bytes, "sketch.png": bytes}


def pack(
    recipe: Recipe,
    out: Path,
    *,
    size: int = 256,
    shard_mb: float = 64,
    shard_count: int = 0,
    skip_bad: int = 0,
    workers: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Packs all pairs, resized to `size` x `size`, into the new folder `out`; returns its manifest.

    Nothing stands at `out` before all is written and on disk. With `workers` above 1 (default: the CPUs this process
    may use) processes are spawned: a script that calls this needs the usual `if __name__ == "__main__":`.

    Args:
        shard_mb: upper limit of a shard in 10^6 bytes (one sample always fits).
        shard_count: upper limit of samples in a shard; 0: bytes alone decide.
        skip_bad: up to so many files that cannot be used are left out, and listed in the manifest.
        force: replace `out` if it holds shards.

    Raises:
        UserError: a setting is out of range, `out` exists, more than `skip_bad` files cannot be used, or the disk.
    """
    _check_settings(size, shard_mb, shard_count, skip_bad, workers)
    refuse_foreign(out, "a folder of shards", MANIFEST, leftovers=False)
    if (out / MANIFEST).is_file() and not force:
        raise UserError(f"{out}: holds packed shards already; remove it or choose another --out")
    found, problems = pairs(recipe)
    try:
        with replaced(out) as folder:
            splits = {}
            with _progress("packing", len(found)) as advance:
                for split in SPLITS:
                    chosen = [p for p in found if p.split == split]
                    prepare = partial(_prepare, root=recipe.root, size=size)
                    samples = _good(_map(prepare, chosen, workers), problems, skip_bad, advance)
                    shards = _write(samples, folder, split, int(shard_mb * 1e6), shard_count)
                    if shards:
                        splits[split] = _describe(folder, shards, has_sketch=chosen[0].sketch is not None)
            budget = f", or leave out up to N of them with --skip-bad N (now {skip_bad})"
            refuse(recipe.root, problems, skip_bad, budget)
            if not splits:
                raise UserError(f"{recipe.root}: no pair is left to pack")
            manifest = {
                "format": FORMAT,
                "size": size,
                "recipe": recipe.name,
                "license": recipe.license,
                "settings": {
                    "resize": "bicubic, antialiased, aspect not kept",
                    "shard_mb": float(shard_mb),
                    "shard_count": shard_count,
                    "val_fraction": recipe.val_fraction,
                },
                "skipped": [asdict(p) for p in problems],
                "splits": splits,
            }
            write_json(folder / MANIFEST, manifest)
    except BrokenProcessPool as e:
        raise UserError(f"{out}: a packing process was killed (out of memory?); try fewer --workers") from e
    except OSError as e:
        raise UserError(f"{out}: cannot be written ({e.strerror or e})") from e
    return manifest


def _check_settings(size: int, shard_mb: float, shard_count: int, skip_bad: int, workers: int | None) -> None:
    if size % 64 or not 64 <= size <= 2048:
        raise UserError(f"size = {size}: must be a multiple of 64 from 64 to 2048 (the networks halve it six times)")
    if not 0 < shard_mb < math.inf:
        raise UserError(f"shard_mb = {shard_mb}: must be above 0")
    for name, value, least in (("shard_count", shard_count, 0), ("skip_bad", skip_bad, 0), ("workers", workers, 1)):
        if value is not None and value < least:
            raise UserError(f"{name} = {value}: must be {least} or more")


def _prepare(pair: FilePair, root: Path, size: int) -> PackedSample | list[Problem]:
    """Reads, resizes and encodes a pair; runs in a worker process."""
    about: dict[str, Any] = {"name": pair.name, "split": pair.split}
    sample: PackedSample = {"__key__": pair.key}
    problems = []
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
        image.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "PNG")
        sample[f"{side}.png"] = buffer.getvalue()
    sample["json"] = json.dumps(about, ensure_ascii=False).encode()
    return problems or sample


def _map(prepare: Any, chosen: list[FilePair], workers: int | None) -> Iterator[PackedSample | list[Problem]]:
    """`map` over processes, in order, a bounded number of pairs ahead of the writer."""
    # spawned: a fork would copy the locks of torch's and rich's threads; processes: Pillow's encoder holds the GIL
    n = min(workers or len(os.sched_getaffinity(0)), math.ceil(len(chosen) / _PAIRS_A_WORKER))
    if n <= 1:
        yield from map(prepare, chosen)
        return
    with ProcessPoolExecutor(n, mp_context=get_context("spawn")) as pool:
        ahead: deque[Future[PackedSample | list[Problem]]] = deque()
        try:
            for pair in chosen:
                ahead.append(pool.submit(prepare, pair))
                if len(ahead) > 8 * n:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _good(
    results: Iterable[PackedSample | list[Problem]], problems: list[Problem], skip_bad: int, advance: Any
) -> Iterator[PackedSample]:
    """Passes the samples on and notes the problems; past the budget it goes on reading, to name them all."""
    for result in results:
        advance()
        if isinstance(result, list):
            problems.extend(result)
        elif len(problems) <= skip_bad:
            yield result


def _write(samples: Iterable[PackedSample], folder: Path, split: str, limit: int, count: int) -> list[str]:
    """Writes the split's shards and returns their names."""
    # here, not above: it imports torch, 3 s that each worker process would wait for
    from webdataset import TarWriter

    names: list[str] = []
    tar = file = None
    used = written = 0
    try:
        for sample in samples:
            # a member: its header (with a PAX header where the name needs it), its bytes up to a whole block
            header = 512 if sample["__key__"].isascii() and len(sample["__key__"]) < 80 else 2048
            need = sum(header + len(v) + -len(v) % 512 for k, v in sample.items() if k != "__key__")
            if tar is None or (count and written == count) or used + need > limit:
                _close(tar, file)
                names.append(f"{split}-{len(names):06d}.tar")
                file = open(folder / names[-1], "xb")  # noqa: SIM115 - closed by _close
                # nothing of this machine or moment may get into the bytes; PAX takes long and non-ASCII names
                tar = TarWriter(
                    file, user="dist_sketch", group="dist_sketch", mtime=0, encoder=False, format="PAX_FORMAT"
                )
                used, written = tarfile.RECORDSIZE, 0
            tar.write(sample)
            used, written = used + need, written + 1
    finally:
        _close(tar, file)
    return names


def _close(tar: Any, file: Any) -> None:
    if tar is not None:
        tar.close()
        file.flush()
        os.fsync(file.fileno())
        file.close()


def _describe(folder: Path, shards: list[str], has_sketch: bool) -> dict[str, Any]:
    """A split's part of the manifest, read back from the shards as they lie on the disk."""
    index: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    listed = []
    for number, name in enumerate(shards):
        spans = _spans(folder / name)
        hashes, whole = _hash(folder / name, [(start, end - start) for _, start, end in spans])
        for (key, start, end), digest in zip(spans, hashes, strict=True):
            for column, value in zip(COLUMNS, (key, number, start, end - start, digest), strict=True):
                index[column].append(value)
        size = (folder / name).stat().st_size
        listed.append({"file": name, "bytes": size, "sha256": whole, "count": len(spans)})
    return {"count": len(index["key"]), "has_sketch": has_sketch, "shards": listed, "index": index}


def _spans(shard: Path) -> list[tuple[str, int, int]]:
    """(key, first byte, byte after the last) of each sample, PAX headers and padding included."""
    spans: list[tuple[str, int, int]] = []
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            key = member.name.partition(".")[0]
            end = member.offset_data + member.size + -member.size % tarfile.BLOCKSIZE
            if spans and spans[-1][0] == key:
                spans[-1] = (key, spans[-1][1], end)
            else:
                spans.append((key, member.offset, end))
    return spans


def _hash(shard: Path, spans: list[tuple[int, int]]) -> tuple[list[str], str]:
    """SHA-256 of each (offset, length), which follow each other from 0, and of the whole file; 1 MiB at a time."""
    whole = hashlib.sha256()
    hashes = []
    with open(shard, "rb") as file:
        for _, left in spans:
            digest = hashlib.sha256()
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                whole.update(block)
                left -= len(block)
            hashes.append(digest.hexdigest())
        while block := file.read(1 << 20):
            whole.update(block)
    return hashes, whole.hexdigest()


def verify(shards: Path, workers: int | None = None) -> dict[str, int]:
    """Reads every shard and compares lengths, counts and hashes with the manifest; returns {split: count}.

    Raises:
        UserError: names what differs, shard and key, up to 10 of them.
    """
    manifest = read_manifest(shards)
    jobs = []
    for split in manifest["splits"].values():
        by_shard: list[list[tuple[str, int, int, str]]] = [[] for _ in split["shards"]]
        columns = [split["index"][name] for name in ("shard", "key", "offset", "length", "sha256")]
        for number, *row in zip(*columns, strict=True):
            by_shard[number].append(tuple(row))
        jobs += list(zip(split["shards"], by_shard, strict=True))
    problems = []
    extra = {p.name for p in shards.glob("*.tar")} - {shard["file"] for shard, _ in jobs}
    with _progress("verifying", len(jobs)) as advance:
        # threads: hashing and reading release the GIL
        with ThreadPoolExecutor(workers or min(8, len(os.sched_getaffinity(0)))) as pool:
            for found in pool.map(lambda job: _verify_shard(shards, *job), jobs):
                problems += found
                advance()
    problems += [f"{name}: is not in the manifest" for name in sorted(extra)]
    if problems:
        more = [f"... and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        listed = "\n  ".join(problems[:_LISTED] + more)
        raise UserError(f"{shards}: the shards differ from the manifest:\n  {listed}\ncopy or pack them again")
    return {name: split["count"] for name, split in manifest["splits"].items()}


def _verify_shard(folder: Path, shard: dict[str, Any], rows: list[tuple[str, int, int, str]]) -> list[str]:
    name, path = shard["file"], folder / shard["file"]
    try:
        size = path.stat().st_size
        hashes, whole = _hash(path, [(offset, length) for _, offset, length, _ in rows])
    except OSError as e:
        return [f"{name}: {'is missing' if isinstance(e, FileNotFoundError) else f'cannot be read ({e.strerror})'}"]
    problems = [] if size == shard["bytes"] else [f"{name}: has {size} bytes, not {shard['bytes']}"]
    problems += [
        f"{name}: key {key}: its bytes {'end too early' if offset + length > size else 'have another SHA-256'}"
        for (key, offset, length, digest), now in zip(rows, hashes, strict=True)
        if now != digest
    ]
    if not problems and whole != shard["sha256"]:
        problems = [f"{name}: has another SHA-256, outside its samples"]
    return problems


@contextmanager
def _progress(what: str, total: int) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)
