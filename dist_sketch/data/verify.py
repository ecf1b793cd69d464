"""Compares shards with their manifest."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import TimeoutError as StillAtWork
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from dist_sketch.core import cpus
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import PART, SMALL, read_regular
from dist_sketch.core.places import Address, Place
from dist_sketch.data.hashes import hashes_in
from dist_sketch.data.index import Index
from dist_sketch.data.manifest import manifest_hash, read_index, read_labels, read_manifest
from dist_sketch.data.node_cache import home
from dist_sketch.data.progress import progress
from dist_sketch.data.recipe import listed
from dist_sketch.data.store import Remote, open_file, size_of

REMOTE_THREADS = 16  # they wait for a server most of the time
NOTED_AFTER_S = 10.0  # a shorter work is not worth to be gone on with
VALID_S = 24 * 3600.0  # what was found good longer ago is looked at again
POLL_S = 1.0
STEP = 2**22  # bytes between two movements of the bar


@dataclass(frozen=True)
class _Job:
    """A shard: its entry in the manifest, and which samples of the split's index lie in it."""

    shard: dict[str, Any]
    index: Index
    samples: slice


def verify(shards: Place) -> dict[str, int]:
    """Reads every shard and compares lengths, counts and hashes with the manifest; returns {split: count}.

    A work that was stopped goes on with the shards that it had not compared.

    Raises:
        UserError: names the first ten differences by shard and key.
        NoAnswer: the store at an address refuses, or does not answer.
    """
    manifest = read_manifest(shards)
    jobs: list[_Job] = []
    for name, split in manifest["splits"].items():
        read_labels(shards, manifest, name)
        index, start = read_index(shards, manifest, name), 0
        for shard in split["shards"]:
            jobs.append(_Job(shard, index, slice(start, start + shard["count"])))
            start += shard["count"]
    done = _Done(shards, manifest_hash(shards))
    left = [job for job in jobs if job.shard["file"] not in done.names]
    problems: list[str] = []
    # Threads are enough, because hashing and reading release the GIL. These do not keep a process alive that hangs.
    threads = REMOTE_THREADS if isinstance(shards, Address) else min(8, len(cpus.usable()))
    total, over = sum(job.shard["bytes"] for job in jobs), Event()
    with progress("verifying", total, in_bytes=True) as advance, ThreadPool(threads) as pool:
        advance(total - sum(job.shard["bytes"] for job in left))
        try:
            looked_at = pool.imap(lambda job: _verify_shard(shards, job, advance, over.is_set), left)
            for job in left:
                found = _next(looked_at)
                problems += found
                if not found:
                    done.add(job.shard["file"])
        finally:  # also after Ctrl-C, and a shard may be very long
            over.set()
    done.close()
    there = Remote(shards).names() if isinstance(shards, Address) else [p.name for p in shards.glob("*.tar")]
    extra = {name for name in there or [] if name.endswith(".tar")} - {job.shard["file"] for job in jobs}
    problems += [f"{name}: is not in the manifest" for name in sorted(extra)]
    if problems:
        lines = listed(problems)
        raise UserError(f"{shards}: the shards differ from the manifest:{lines}\ncopy or pack them again")
    return {name: split["count"] for name, split in manifest["splits"].items()}


def _next(results: Any) -> list[str]:
    """The next result of `ThreadPool.imap`, waited for in short pieces: Ctrl-C is lost on a wait that just begins."""
    while True:
        with suppress(StillAtWork):
            found: list[str] = results.next(POLL_S)
            return found


def _verify_shard(shards: Place, job: _Job, advance: Callable[[int], None], over: Callable[[], bool]) -> list[str]:
    """What differs from the manifest's entry of a shard and the hashes that its index gives for the samples."""
    shard, name = job.shard, job.shard["file"]
    lengths, expected = job.index.lengths[job.samples].tolist(), job.index.hashes[job.samples]
    try:
        with open_file(shards, name) as file, _Told(file.read, advance) as told:
            hashes, whole = hashes_in(told.read, lengths, shard["bytes"], over)
        size = size_of(shards, name)
    except OSError as e:
        return [f"{name}: {'is missing' if isinstance(e, FileNotFoundError) else f'cannot be read ({e.strerror})'}"]
    problems = [] if size == shard["bytes"] else [f"{name}: has {size} bytes, not {shard['bytes']}"]
    ends = np.cumsum(lengths)
    for i, digest in enumerate(hashes):
        if digest != expected[i].tobytes():
            why = "end too early" if ends[i] > size else "have another SHA-256"
            problems.append(f"{name}: key {job.index.keys[job.samples.start + i]}: its bytes {why}")
    if not problems and whole != shard["sha256"]:
        problems = [f"{name}: has another SHA-256, outside its samples"]
    return problems


class _Told:
    """Reads, and tells from time to time how much was read: a bar that moves at each sample would be slow."""

    def __init__(self, read: Callable[[int], bytes], advance: Callable[[int], None]):
        self._read, self._advance, self._untold = read, advance, 0

    def __enter__(self) -> "_Told":
        return self

    def __exit__(self, *_: object) -> None:
        self._advance(self._untold)

    def read(self, length: int) -> bytes:
        """The next `length` bytes, or fewer."""
        block = self._read(length)
        self._untold += len(block)
        if self._untold >= STEP:
            self._advance(self._untold)
            self._untold = 0
        return block


class _Done:
    """Which shards a work that was stopped had found good. It lies beside shards in a folder, if it can be written.

    Its name is that of a half-written file of ours, which `pack --force` removes with the shards.
    """

    def __init__(self, shards: Place, sha256: str):
        beside = not isinstance(shards, Address) and os.access(shards, os.W_OK)
        folder = shards if beside and isinstance(shards, Path) else home()
        self._shards, self._began = shards, time.monotonic()
        # A copy has the same manifest, but it may be damaged
        place = hashlib.sha256(f"{sha256} {shards.resolve()}".encode()).hexdigest()
        self._path = folder / f".verify-{place[:16]}.0{PART}"
        self._new: list[str] = []  # not noted yet
        self.names = set(self._read())

    def _read(self) -> Iterator[str]:
        with suppress(OSError):
            found = self._path.lstat()
            if time.time() - found.st_mtime > VALID_S or found.st_uid != os.getuid():  # others may not say what is good
                return
            # the end of the last line may be missing
            for line in read_regular(self._path, SMALL).decode("utf-8", "replace").split("\n")[:-1]:
                name, _, about = line.rpartition(" ")
                if about == self._about(name):
                    yield name

    def _about(self, name: str) -> str:
        """What changes when somebody writes to the file; "-" if that cannot be seen."""
        if isinstance(self._shards, Address):
            return "-"
        try:
            found = (self._shards / name).stat()
        except OSError:
            return "gone"
        return f"{found.st_size}-{found.st_mtime_ns}"

    def add(self, name: str) -> None:
        """Notes a shard as good; a disk on which that cannot be done only costs the work again."""
        self._new.append(f"{name} {self._about(name)}\n")
        if time.monotonic() - self._began < NOTED_AFTER_S:
            return
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            try:
                os.write(file, "".join(self._new).encode())
            finally:
                os.close(file)
            self._new = []

    def close(self) -> None:
        """Nothing is left to go on with."""
        with suppress(OSError):
            self._path.unlink()
