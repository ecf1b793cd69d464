"""SHA-256 of a shard and of each sample in it."""

import hashlib
from collections.abc import Callable, Sequence


def hashes_in(
    read: Callable[[int], bytes | None], lengths: Sequence[int], size: int, over: Callable[[], bool] = lambda: False
) -> tuple[list[bytes], str]:
    """SHA-256 of each sample, and (in hexadecimal digits) of the first `size` bytes, of what `read` gives.

    Args:
        lengths: of the samples, which follow each other from the beginning.
        over: asked often; once it is true, nobody needs the result.
    """
    whole, hashes = hashlib.sha256(), []
    for length in (*lengths, size - sum(lengths)):
        digest = hashlib.sha256()
        # a damaged manifest may name any length
        while length > 0 and not over() and (block := read(min(length, 2**22))):
            digest.update(block)
            whole.update(block)
            length -= len(block)
        hashes.append(digest.digest())
    return hashes[:-1], whole.hexdigest()
