"""Memory that all ranks of one machine share, so that the machine keeps one copy of the data."""

import mmap
import os
import uuid
from pathlib import Path
from typing import NamedTuple

from dist_sketch.core.ranks import Ranks

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # differs between machines, unlike names of hosts


class Offer(NamedTuple):
    """A file in memory that another process of the same machine can open."""

    boot_id: str
    path: str
    name: str


def shared_by_node(ranks: Ranks, size: int) -> mmap.mmap | None:
    """Memory of `size` bytes that all ranks of this machine see; None where it cannot be shared. All ranks call this.

    Each rank offers a file without a place in any folder, which takes no memory until it is written. All ranks learn of
    all offers, and those of one machine take the first of theirs. The memory is given back when the last of them ends.
    """
    if ranks.world_size == 1:
        return None
    file, own = _offer(size)
    offers = ranks.gather(own)
    memory = None
    if own is not None:
        memory = opened(next(o for o in offers if o is not None and o.boot_id == own.boot_id), size)
    ranks.wait()  # until all have opened it
    if file is not None:
        os.close(file)
    return memory


def _offer(size: int) -> tuple[int | None, Offer | None]:
    """The descriptor of a new file in memory, and how others find it; None, None where the system has no such files."""
    name = f"dist_sketch-{uuid.uuid4().hex}"
    try:
        boot_id = BOOT_ID.read_text(encoding="ascii")
        file = os.memfd_create(name)
    except (AttributeError, OSError):  # only Linux has them
        return None, None
    try:
        os.ftruncate(file, size)
    except OSError:  # such as a limit of the size of files
        os.close(file)
        return None, None
    return file, Offer(boot_id, f"/proc/{os.getpid()}/fd/{file}", name)


def opened(offer: Offer, size: int) -> mmap.mmap | None:
    """The memory that is offered; None if it cannot be opened."""
    try:
        # Ranks in containers of one machine may count their processes separately: then this is another process's file.
        if offer.name not in os.readlink(offer.path):
            return None
        with open(offer.path, "r+b") as f:
            return mmap.mmap(f.fileno(), size)
    except OSError:
        return None
