"""Decoded pairs in host memory that processes share, so that each pair is decoded only once."""

import math
import mmap
import zlib

import numpy as np
import torch
from torch import Tensor

SUM_BYTES = 4


class DecodedPairs:
    """Decoded pairs, shape (N, 2, C, H, W), and for each a checksum of its bytes; 0: it is not there.

    Pages take no memory until they are written. Some processors, such as ARM's, let another process see what was
    written last before it sees the rest. So a process compares the bytes with the checksum when it first takes a pair;
    a pair that it does not see whole is not there yet.

    Args:
        memory: of the ranks of a machine together (`node_memory`); None: of this process and those that it forks. It is
            never in /dev/shm, which containers keep small.
    """

    def __init__(self, shape: tuple[int, ...], memory: mmap.mmap | None = None):
        count = shape[0]
        memory = memory if memory is not None else mmap.mmap(-1, size_of(shape))
        self._sums = np.frombuffer(memory, np.uint32, count)
        self._images = torch.frombuffer(memory, dtype=torch.uint8, offset=SUM_BYTES * count).view(shape)
        self._seen = bytearray(count)  # by this process, whole

    def get(self, i: int) -> tuple[Tensor, Tensor] | None:
        """Pair `i`, read-only uint8 (C, H, W) each; None if it has not been decoded yet."""
        if not self._seen[i]:
            if not self._sums[i] or self._sums[i] != self._sum(i):
                return None
            self._seen[i] = 1
        return self._images[i, 0], self._images[i, 1]

    def complete(self) -> bool:
        """Whether all pairs have been decoded."""
        return bool(self._sums.all())

    def put(self, i: int, line: Tensor, sketch: Tensor) -> None:
        """Keeps pair `i`. If two processes do this at once, they write the same bytes."""
        self._images[i, 0].copy_(line)
        self._images[i, 1].copy_(sketch)
        self._sums[i] = self._sum(i)

    def _sum(self, i: int) -> int:
        return zlib.crc32(self._images[i].numpy().data) or 1


def size_of(shape: tuple[int, ...]) -> int:
    """Bytes of memory that `DecodedPairs` of this shape needs."""
    return SUM_BYTES * shape[0] + math.prod(shape)
