"""Decoded pairs in host memory that processes share, so that each pair is decoded only once."""

import math
import mmap

import numpy as np
import torch
from torch import Tensor


class DecodedPairs:
    """Decoded pairs, shape (N, 2, C, H, W), and a byte for each that says whether it is there.

    Pages take no memory until they are written.

    Args:
        memory: of the ranks of a machine together (`node_memory`); None: of this process and those that it forks. It is
            never in /dev/shm, which containers keep small.
    """

    def __init__(self, shape: tuple[int, ...], memory: mmap.mmap | None = None):
        count = shape[0]
        memory = memory if memory is not None else mmap.mmap(-1, size_of(shape))
        self._present = np.frombuffer(memory, np.uint8, count)
        self._images = torch.frombuffer(memory, dtype=torch.uint8, offset=count).view(shape)

    def get(self, i: int) -> tuple[Tensor, Tensor] | None:
        """Pair `i`, read-only uint8 (C, H, W) each; None if it has not been decoded yet."""
        return (self._images[i, 0], self._images[i, 1]) if self._present[i] else None

    def complete(self) -> bool:
        """Whether all pairs have been decoded."""
        return bool(self._present.all())

    def put(self, i: int, line: Tensor, sketch: Tensor) -> None:
        """Keeps pair `i`. If two processes do this at once, they write the same bytes."""
        self._images[i, 0].copy_(line)
        self._images[i, 1].copy_(sketch)
        self._present[i] = 1


def size_of(shape: tuple[int, ...]) -> int:
    """Bytes of memory that `DecodedPairs` of this shape needs."""
    return shape[0] + math.prod(shape)
