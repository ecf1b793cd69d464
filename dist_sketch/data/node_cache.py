"""What was fetched from an address, on this node's disk: one sparse file a shard, in which a sample lies at its place.

Nothing says what is there: who reads a sample compares its hash, as always, and fetches it if that is wrong. So the
processes of a node share the files without locks, and one that is killed while it writes does no harm.
"""

import os
import re
import stat
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

NAME = re.compile(r"[0-9a-f]{64}\.shard")
VARIABLE = "DIST_SKETCH_CACHE"
LEFT_FREE = 10**9  # bytes of the disk that are left to others
LOOKS = 100  # how often it is looked how much lies there, while as much as may lie there is written
FULL_S = 60.0  # until it is looked again whether there is room


class NodeCache:
    """Fetched samples of a data set. A disk that is full or cannot be written only means no cache.

    What lies there of other data sets is removed when its room is needed, oldest first. When this data set fills the
    room alone, what lies there stays: an epoch reads each sample once, so removing one for another would gain nothing.

    Args:
        hashes: of all its shards.
        most_mb: how much the folder may hold, of all shards and processes together.
        folder: default: `home`.
    """

    def __init__(self, hashes: Collection[str], most_mb: float, folder: Path | None = None):
        self._own = {f"{digest}.shard" for digest in hashes}
        self._most, self._room, self._full_until = int(most_mb * 1e6), 0, 0.0
        self._folder = (folder or home()) if most_mb > 0 else None
        try:
            if self._folder is not None:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                found = self._folder.lstat()
                # In a folder that others can write to, they could have made it: they would see what is fetched.
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                    self._folder = None
        except OSError:
            self._folder = None

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """What lies at this place of the shard with this hash: the right bytes, or others, or none."""
        if self._folder is None:
            return b""
        try:
            file = os.open(self._folder / f"{shard}.shard", os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return b""
        try:
            return os.pread(file, length, offset)
        except OSError:
            return b""
        finally:
            os.close(file)

    def write(self, shard: str, offset: int, block: bytes) -> None:
        """Keeps bytes, if there is room for them."""
        if self._folder is None:
            return
        try:
            if not self._has_room(len(block)):
                return
            path = self._folder / f"{shard}.shard"
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                os.pwrite(file, block, offset)
            finally:
                os.close(file)
        except OSError:  # the disk is full, or gone
            self._folder = None

    def _has_room(self, needed: int) -> bool:
        if time.monotonic() < self._full_until:
            return False
        if self._room < needed:
            self._room = min(self._look(needed), max(self._most // LOOKS, needed))
        if self._room < needed:
            self._full_until = time.monotonic() + FULL_S
            return False
        self._room -= needed
        return True

    def _look(self, needed: int) -> int:
        """Bytes that may be written; removes files of other shards, oldest first, if there are fewer than `needed`."""
        assert self._folder is not None
        files = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(OSError):  # removed by another process in this moment
                    if NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        about = entry.stat(follow_symlinks=False)
                        files.append((about.st_mtime, entry.name, 512 * about.st_blocks))
        room = self._most - sum(size for _, _, size in files)
        disk = os.statvfs(self._folder)
        room = min(room, disk.f_bavail * disk.f_frsize - LEFT_FREE)
        for _, name, size in sorted(files):
            if room >= needed:
                break
            if name not in self._own:
                with suppress(OSError):
                    (self._folder / name).unlink()
                    room += size
        return room


def home() -> Path:
    """The folder for what is fetched: DIST_SKETCH_CACHE, or one of this user on the disk for temporary files."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    disk = os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path(disk) / f"dist-sketch-cache-{os.getuid()}"
