"""Batches out of shards: an order that depends on (seed, epoch) alone, cut into equal shares for the ranks.

Stock WebDataset pipelines distribute whole shards over ranks and workers, so that ranks may get unequal numbers of
batches. Here each sample is read by its place in the manifest (shard, offset, length, hash).
"""

import atexit
import math
import mmap
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dist_sketch.core.config import DataConfig
from dist_sketch.core.errors import UserError
from dist_sketch.data import pixels
from dist_sketch.data.shards import BadSample, Shards

Place = tuple[int, int]  # epoch, index
TrainingPair = tuple[str, Tensor, Tensor]  # key; line and sketch, uint8 (C, H, W) each


def order(count: int, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """The indices 0..count-1 in the order of one epoch; equal on all ranks."""
    if not shuffle:
        return np.arange(count)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(epoch,)))).permutation(count)


def steps_an_epoch(count: int, batch_size: int) -> int:
    """Whole global batches in `count` pairs; the last incomplete one is left out."""
    return count // batch_size


def check_batch(batch_size: int, world_size: int, count: int) -> None:
    """Refuses a global batch that the ranks cannot share equally, or that is larger than the data set.

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
        raise UserError(
            f"data.batch_size = {batch_size}: the training split has only {count} pairs; use {count} or less"
        )


@dataclass(frozen=True)
class Batch:
    """This rank's share of a global batch: uint8 (B, C, H, W) each."""

    line: Tensor
    sketch: Tensor
    keys: list[str]
    bad: list[str]  # sentences about samples that were left out

    @property
    def blank(self) -> bool:
        """Whether all samples were left out. White images replace them, so that this rank can take part in the step."""
        return not self.keys

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader on GPU machines."""
        return Batch(self.line.pin_memory(), self.sketch.pin_memory(), self.keys, self.bad)


class _DecodedPairs:
    """Decoded pairs in memory that is shared with forked workers, so that each pair is decoded only once.

    The memory is anonymous, because containers keep /dev/shm small. Pages take no memory until they are written.
    """

    def __init__(self, shape: tuple[int, ...]):
        count = shape[0]
        memory = mmap.mmap(-1, count + math.prod(shape))
        self._present = np.frombuffer(memory, np.uint8, count)
        self._images = torch.frombuffer(memory, dtype=torch.uint8, offset=count).view(shape)

    def get(self, i: int) -> tuple[Tensor, Tensor] | None:
        """Pair `i`, read-only uint8 (C, H, W) each; None if it has not been decoded yet."""
        return (self._images[i, 0], self._images[i, 1]) if self._present[i] else None

    def complete(self) -> bool:
        """Whether all pairs have been decoded."""
        return bool(self._present.all())

    def put(self, i: int, line: Tensor, sketch: Tensor) -> None:
        """Keeps pair `i`. If two workers do this at once, they write the same bytes."""
        self._images[i, 0].copy_(line)
        self._images[i, 1].copy_(sketch)
        self._present[i] = 1


class _Pairs(Dataset[Any]):
    """Pairs by (epoch, index), so that augmentation needs no state in the workers."""

    def __init__(self, shards: Shards, data: DataConfig, seed: int):
        self.shards, self.data, self.seed = shards, data, seed
        self.augments = data.flip or data.shift
        shape = (len(shards), 2, data.channels, shards.size, shards.size)
        self._decoded = _DecodedPairs(shape) if math.prod(shape) <= data.memory_mb * 1e6 else None

    def __getitem__(self, place: Place) -> TrainingPair | BadSample:
        epoch, i = place
        try:
            line, sketch = self._read(i)
        except BadSample as e:
            return e  # the training loop counts it and knows how many are allowed
        key = str(self.shards.keys[i])
        if self.augments:
            generator = pixels.pair_generator(self.seed, epoch, key)
            line, sketch = pixels.augment(line, sketch, generator, flip=self.data.flip, shift=self.data.shift)
        return key, line, sketch

    def at_hand(self) -> bool:
        """True when all pairs are decoded here, so that asking a worker would be slower."""
        return not self.augments and self._decoded is not None and self._decoded.complete()

    def _read(self, i: int) -> tuple[Tensor, Tensor]:
        decoded = self._decoded.get(i) if self._decoded is not None else None
        if decoded is not None:
            return decoded
        sample = self.shards.read(i, self.data.channels)
        assert sample.sketch is not None  # checked before training starts
        if self._decoded is not None:
            self._decoded.put(i, sample.line, sample.sketch)
        return sample.line, sample.sketch


class PlaceSampler(Sampler[list[Place]]):
    """This rank's share of each global batch of one epoch, from `first_step` on."""

    def __init__(self, count: int, data: DataConfig, seed: int, rank: int, world_size: int):
        self.count, self.data, self.seed = count, data, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.first_step = 0, 0

    def __iter__(self) -> Iterator[list[Place]]:
        indices = order(self.count, self.seed, self.epoch, self.data.shuffle)
        share = self.data.batch_size // self.world_size
        for step in range(self.first_step, steps_an_epoch(self.count, self.data.batch_size)):
            start = step * self.data.batch_size + self.rank * share
            yield [(self.epoch, int(i)) for i in indices[start : start + share]]


def _collate(pairs: Sequence[TrainingPair | BadSample], *, channels: int, size: int) -> Batch:
    good = [p for p in pairs if not isinstance(p, BadSample)]
    bad = [str(p) for p in pairs if isinstance(p, BadSample)]
    if not good:
        blank = torch.full((len(pairs), channels, size, size), 255, dtype=torch.uint8)
        return Batch(blank, blank, [], bad)
    keys, lines, sketches = zip(*good, strict=True)
    return Batch(torch.stack(lines), torch.stack(sketches), list(keys), bad)


def _ignore_signals(worker: int) -> None:
    """SLURM signals all processes of a job. The training process decides when to stop, and needs its workers then."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    """Kills the workers at exit, because they ignore the signal by which multiprocessing ends its children."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report an error
    for process in multiprocessing.active_children():
        process.kill()


class Loader:
    """The training split as batches of this rank. Do not hand it to `Accelerator.prepare`: it is already split."""

    def __init__(self, shards: Shards, data: DataConfig, *, seed: int, rank: int, world_size: int, pin: bool = False):
        check_batch(data.batch_size, world_size, len(shards))
        self.steps = steps_an_epoch(len(shards), data.batch_size)
        self._sampler = PlaceSampler(len(shards), data, seed, rank, world_size)
        self._folder, self._stall_timeout_s = shards.folder, data.stall_timeout_s
        if data.workers:
            atexit.register(_kill_workers)
        self._pairs, self._pin = _Pairs(shards, data, seed), pin
        self._collate = partial(_collate, channels=data.channels, size=shards.size)
        self._loader = DataLoader(
            self._pairs,
            batch_sampler=self._sampler,
            collate_fn=self._collate,
            num_workers=data.workers,
            multiprocessing_context="fork" if data.workers else None,  # shares the index and the decoded pairs
            persistent_workers=data.workers > 0,
            timeout=data.stall_timeout_s if data.workers else 0,
            worker_init_fn=_ignore_signals,
            pin_memory=pin,
            generator=torch.Generator(),  # else each epoch would draw from the global generator, which dropout uses
        )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on; earlier ones are not read.

        Raises:
            UserError: the workers deliver no batch for `data.stall_timeout_s`.
        """
        self._sampler.epoch, self._sampler.first_step = epoch, first_step
        if self._pairs.at_hand():
            for places in self._sampler:
                batch = self._collate([self._pairs[place] for place in places])
                yield batch.pin_memory() if self._pin else batch
            return
        try:
            yield from self._loader
        except RuntimeError as e:
            if "timed out" not in str(e):
                raise
            raise UserError(
                f"{self._folder}: no batch for {self._stall_timeout_s:g} s; does the disk answer? "
                "Start again when it does, or raise --data.stall-timeout-s"
            ) from e
