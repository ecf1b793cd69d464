"""SHA-256 of a shard and of each sample in it."""

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path

from dist_sketch.core.fileio import open_regular

Span = tuple[str, int, int]  # a sample's key, offset and length in a shard


def hashes_of(
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
