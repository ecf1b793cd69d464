"""Compares shards with their manifest."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

from dist_sketch.core import cpus
from dist_sketch.core.errors import UserError
from dist_sketch.data.hashes import Span, hashes_of
from dist_sketch.data.manifest import COLUMNS, read_manifest
from dist_sketch.data.progress import progress
from dist_sketch.data.recipe import listed


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
    with progress("verifying", len(jobs)) as advance, ThreadPoolExecutor(threads) as pool:
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
        hashes, whole = hashes_of(path, expected, shard["bytes"], over)
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
