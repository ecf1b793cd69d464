"""Samples at an address: from this node's disk if they were fetched before, else many of them with few requests."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from dist_sketch.core.places import Address
from dist_sketch.data.node_cache import NodeCache
from dist_sketch.data.store import Access, Range, Remote

FETCHES = 2  # of a sample whose bytes are wrong: half of it may have come


class Wanted(NamedTuple):
    """Where a sample lies, and the SHA-256 of its bytes."""

    shard: int
    offset: int
    length: int
    sha256: bytes


class RemoteSamples:
    """The samples of a split in the shards at an address.

    Args:
        manifest: the result of `read_manifest`.
    """

    def __init__(self, address: Address, manifest: dict[str, Any], split: str, access: Access):
        self._remote = Remote(address, access.patience_s)
        hashes = {
            name: {shard["file"]: shard["sha256"] for shard in part["shards"]}
            for name, part in manifest["splits"].items()
        }
        self._files, self._hashes = list(hashes[split]), list(hashes[split].values())
        self._cache = NodeCache([digest for part in hashes.values() for digest in part.values()], access.cache_mb)

    def read(self, wanted: Sequence[Wanted]) -> list[bytes | OSError]:
        """The bytes of each sample; they are wrong if they still were when fetched again.

        Raises:
            NoAnswer: the store refuses, or does not answer.
        """
        found: list[bytes | OSError] = [self._cache.read(self._hashes[w.shard], w.offset, w.length) for w in wanted]
        for _ in range(FETCHES):
            missing = [i for i, w in enumerate(wanted) if not _is_right(found[i], w)]
            if not missing:
                break
            parts = [Range(self._files[w.shard], w.offset, w.length) for w in map(wanted.__getitem__, missing)]
            for i, data in zip(missing, self._remote.ranges(parts), strict=True):
                found[i] = data
                if not isinstance(data, OSError) and _is_right(data, wanted[i]):
                    self._cache.write(self._hashes[wanted[i].shard], wanted[i].offset, data)
        return found


def _is_right(data: bytes | OSError, wanted: Wanted) -> bool:
    return not isinstance(data, OSError) and hashlib.sha256(data).digest() == wanted.sha256
