"""Which pairs an epoch has, in which order, and which rank gets them: a function of seed, epoch and weights alone.

Without weights each pair stands once in an epoch. With weights a pair of weight 3 stands there three times, one of
weight 1.5 once or twice, and each epoch has the same number of places: the sum of all weights, rounded down.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_sketch.core.config import DataConfig
from dist_sketch.core.errors import UserError

PHASES = 2**20  # of systematic sampling; a power of two, so that floats add it to a place without rounding
ROUNDING = 1e-6  # a sum of weights this far below a whole number is that number


class Place(NamedTuple):
    """One place of an epoch."""

    epoch: int
    pair: int  # its number in the split
    copy: int  # how often the pair stood in this epoch before; each copy is augmented in its own way

    def stream(self, key: str) -> str:
        """The name of the random stream of this place, whose pair has this key; keys have no slash."""
        return f"{key}/{self.copy}" if self.copy else key


def order(count: int, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    """The indices 0..count-1 in the order of one epoch; equal on all ranks."""
    if not shuffle:
        return np.arange(count)
    return _generator(seed, epoch).permutation(count)


def length(count: int, weights: NDArray[np.float64] | None) -> int:
    """How many places each epoch has."""
    return count if weights is None else int(np.floor(weights).sum()) + _extra(weights)


def copies(weights: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.int64]:
    """How often each pair stands in an epoch: its weight, rounded down or up; in the mean over epochs the weight.

    The fractions are rounded by systematic sampling (Madow 1949) in an order of the epoch's own: the places of an
    evenly spaced comb on the line of all fractions decide who gets one more, so that their number is always the same.
    """
    whole, extra = np.floor(weights), _extra(weights)
    if not extra:
        return whole.astype(np.int64)
    rng = _generator(seed, epoch, 1)
    turn = rng.permutation(len(weights))
    ends = np.cumsum((weights - whole)[turn])
    ends *= extra / ends[-1]
    ends[-1] = extra
    before = np.floor(ends + rng.integers(PHASES) / PHASES)
    whole[turn] += np.diff(before, prepend=0)
    return whole.astype(np.int64)


def _extra(weights: NDArray[np.float64]) -> int:
    """How many places the fractions of all weights have together."""
    return int((weights - np.floor(weights)).sum() + ROUNDING)


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def steps_an_epoch(count: int, batch_size: int) -> int:
    """Whole global batches in `count` places; the last incomplete one is left out."""
    return count // batch_size


def check_batch(batch_size: int, world_size: int, count: int) -> None:
    """Refuses a global batch that the ranks cannot share equally, or that is larger than an epoch of `count` places.

    Raises:
        UserError: proposes sizes that work.
    """
    if batch_size % world_size:
        fitting = batch_size - batch_size % world_size
        raise UserError(
            f"data.batch_size = {batch_size}: is the global batch and does not divide by {world_size} ranks; "
            f"use {fitting + world_size}" + (f" or {fitting}" if fitting else "")
        )
    if batch_size > count:
        raise UserError(f"data.batch_size = {batch_size}: an epoch has only {count} pairs; use {count} or less")


class PlaceSampler:
    """This rank's share of each global batch of one epoch, from `first_step` on.

    Args:
        count: of pairs.
        weights: of the pairs (N,), each above 0; None: all 1.

    Raises:
        UserError: the ranks cannot share a batch, see `check_batch`.
    """

    def __init__(
        self,
        count: int,
        data: DataConfig,
        seed: int,
        rank: int,
        world_size: int,
        weights: NDArray[np.float64] | None = None,
    ):
        self.length = length(count, weights)
        check_batch(data.batch_size, world_size, self.length)
        self.steps, self.share = steps_an_epoch(self.length, data.batch_size), data.batch_size // world_size
        self.count, self.data, self.seed, self.rank, self.weights = count, data, seed, rank, weights
        self.epoch, self.first_step = 0, 0

    def __iter__(self) -> Iterator[list[Place]]:
        pairs, copy = self._order()
        for step in range(self.first_step, self.steps):
            start = step * self.data.batch_size + self.rank * self.share
            yield [Place(self.epoch, int(pairs[i]), int(copy[i])) for i in range(start, start + self.share)]

    def _order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each place of the epoch its pair, and which copy of the pair that is."""
        places = order(self.length, self.seed, self.epoch, self.data.shuffle)
        if self.weights is None:
            return places, np.zeros_like(places)
        times = copies(self.weights, self.seed, self.epoch)
        pairs = np.repeat(np.arange(self.count), times)
        copy = np.arange(self.length) - np.repeat(np.cumsum(times) - times, times)
        return pairs[places], copy[places]
