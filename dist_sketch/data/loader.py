"""Batches out of shards: the places of an order, cut into equal shares for the ranks, are read and put together.

Stock WebDataset pipelines distribute whole shards over ranks and workers, so that ranks may get unequal numbers of
batches. Here each sample is read by its place in the manifest (shard, offset, length, hash).
"""

import math
import mmap
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dist_sketch.core.config import DataConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.signals import STOP_SIGNALS, signal_on_parent_death
from dist_sketch.core.workers import starting
from dist_sketch.data import freehand, pixels
from dist_sketch.data.decoded import DecodedPairs
from dist_sketch.data.order import Place, PlaceSampler
from dist_sketch.data.selection import weights
from dist_sketch.data.shards import BadSample, Sample, Shards
from dist_sketch.data.store import NoAnswer

Pair = tuple[Tensor, Tensor]  # line, sketch: uint8 (C, H, W) each
BATCHES_A_WORKER = 2  # asked for at once
POLL_S = 1.0  # between two looks whether to go on waiting for a batch


@dataclass(frozen=True)
class Batch:
    """This rank's share of a global batch, always of its full size B; so each step has the same shapes on all ranks.

    A slot whose own pair cannot be read holds a stand-in: the next pair of the split that can be read. Its losses have
    the weight 0. But BatchNorm's statistics include it, and there a real pair does no harm, unlike a white page.
    """

    line: Tensor  # uint8 (B, C, H, W)
    sketch: Tensor
    good: Tensor  # bool (B,): False for a stand-in
    keys: list[str]  # of the good slots
    bad: list[str]  # sentences about the pairs that could not be read

    def pin_memory(self) -> "Batch":
        """The same batch in memory from which a GPU can copy by itself."""
        return Batch(self.line.pin_memory(), self.sketch.pin_memory(), self.good.pin_memory(), self.keys, self.bad)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The same batch on `device`."""
        line, sketch, good = (t.to(device, non_blocking=non_blocking) for t in (self.line, self.sketch, self.good))
        return Batch(line, sketch, good, self.keys, self.bad)


def split_shape(shards: Shards, data: DataConfig) -> tuple[int, int, int, int, int]:
    """(N, 2, C, H, W) of the decoded split, in bytes."""
    return len(shards), 2, data.channels, shards.size, shards.size


def stand_ins(i: int, count: int) -> Iterator[int]:
    """Which pairs may stand in for pair `i`, in the order in which they are tried."""
    return ((i + k) % count for k in range(1, count))


def nothing_readable(shards: Shards) -> str:
    """The sentence for a split without one readable pair."""
    return (
        f"{shards.folder}: not one of the {len(shards)} {shards.split} pairs can be read; does the disk answer? "
        "`dist-sketch verify` says what is wrong with them"
    )


class NoBatch(UserError):
    """The next batch does not come. The ones before did, so what was made of them can be saved."""


def refuse(error: UserError) -> None:
    """Raises it."""
    raise error


class _Slot(NamedTuple):
    """One place of a batch: the pair that fills it, and a sentence if that is a stand-in."""

    key: str
    line: Tensor  # uint8 (C, H, W)
    sketch: Tensor
    bad: str | None


class _Pairs:
    """Pairs by place, so that augmentation needs no state in the workers."""

    def __init__(self, shards: Shards, data: DataConfig, seed: int, memory: mmap.mmap | None):
        self.shards, self.data, self.seed = shards, data, seed
        self.augments = bool(data.flip or data.shift or data.freehand)
        shape = split_shape(shards, data)
        self._unreadable: set[int] = set()  # up to now; they are not tried as stand-ins
        self._decoded = DecodedPairs(shape, memory) if math.prod(shape) <= data.memory_mb * 1e6 else None

    def batch(self, places: list[Place]) -> Batch:
        """The pairs of these places."""
        pairs = self._read([place.pair for place in places])
        slots = [self._slot(place, pair) for place, pair in zip(places, pairs, strict=True)]
        return Batch(
            torch.stack([s.line for s in slots]),
            torch.stack([s.sketch for s in slots]),
            torch.tensor([s.bad is None for s in slots]),
            [s.key for s in slots if s.bad is None],
            [s.bad for s in slots if s.bad is not None],
        )

    def _slot(self, place: Place, pair: Pair | BadSample) -> _Slot:
        i, bad = place.pair, None
        if isinstance(pair, BadSample):
            bad = str(pair)  # the training loop counts it and knows how many are allowed
            i, pair = self._stand_in(i)
        line, sketch = pair
        key = str(self.shards.keys[i])
        if self.augments:
            generator = pixels.pair_generator(self.seed, place.epoch, place.stream(key))
            move = pixels.draw_move(generator, *line.shape[-2:], flip=self.data.flip, shift=self.data.shift)
            number = pixels.draw_version(generator, self.data.freehand)
            if number is not None:
                line = torch.from_numpy(freehand.version(line.numpy(), self.seed, number, key))
            line, sketch = pixels.moved(line, move), pixels.moved(sketch, move)
        return _Slot(key, line, sketch, bad)

    def at_hand(self) -> bool:
        """True when all pairs are decoded here, so that asking a worker would be slower."""
        return not self.augments and self._decoded is not None and self._decoded.complete()

    def _read(self, numbers: list[int]) -> list[Pair | BadSample]:
        """These pairs; those that are not decoded yet are read together."""
        decoded = self._decoded
        found: list[Pair | BadSample | None] = [decoded.get(i) if decoded is not None else None for i in numbers]
        missing = [i for i, pair in zip(numbers, found, strict=True) if pair is None]
        read = iter(self.shards.read_several(missing, self.data.channels) if missing else ())
        return [self._kept(i, next(read)) if pair is None else pair for i, pair in zip(numbers, found, strict=True)]

    def _kept(self, i: int, sample: Sample | BadSample) -> Pair | BadSample:
        if isinstance(sample, BadSample):
            self._unreadable.add(i)
            return sample
        self._unreadable.discard(i)
        assert sample.sketch is not None  # checked before training starts
        if self._decoded is not None:
            self._decoded.put(i, sample.line, sample.sketch)
        return sample.line, sample.sketch

    def _stand_in(self, i: int) -> tuple[int, Pair]:
        for other in stand_ins(i, len(self.shards)):
            (pair,) = self._read([other]) if other not in self._unreadable else (None,)
            if isinstance(pair, tuple):  # a bad one is reported when its own turn comes
                return other, pair
        raise NoBatch(nothing_readable(self.shards))


_in_worker: "tuple[_Pairs, Tensor]"  # what a worker inherits from the process that forked it: the pairs, the slots


def _begin(pairs: _Pairs, slots: Tensor) -> None:
    """Worker set-up.

    SLURM signals all processes of a job. The training process decides when to stop, and needs its workers then.
    """
    global _in_worker
    _in_worker = pairs, slots
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal_on_parent_death(signal.SIGKILL)
    torch.set_num_threads(1)


def _fill(slot: int, places: list[Place]) -> tuple[int, list[bool], list[str], list[str]]:
    """In a worker: puts a batch's pictures into a slot; returns the slot and the rest of the batch."""
    pairs, slots = _in_worker
    batch = pairs.batch(places)
    slots[slot, 0], slots[slot, 1] = batch.line, batch.sketch
    return slot, batch.good.tolist(), batch.keys, batch.bad


class Loader:
    """The training split as batches of this rank. Do not hand it to `Accelerator.prepare`: it is already split.

    Its workers put pictures into memory that they inherit. So batches need neither sockets in a temporary folder nor
    /dev/shm, which containers keep small.

    Args:
        pin: put the batches into pinned memory, from which a GPU copies while it computes.
        memory: for the decoded pairs, of the ranks of this machine together (`node_memory`); None: this rank
            has its own.
        waiting: called with the seconds for which a batch has been waited for, about every second; it may raise.
        killed: called with a sentence when a process that reads was killed; it may raise, and by default does. If not,
            new ones go on, so that the ranks can come to an end together. This happens once.
    """

    def __init__(
        self,
        shards: Shards,
        data: DataConfig,
        *,
        seed: int,
        rank: int,
        world_size: int,
        pin: bool = False,
        memory: mmap.mmap | None = None,
        waiting: Callable[[float], None] = lambda _: None,
        killed: Callable[[UserError], None] = refuse,
    ):
        self._sampler = PlaceSampler(len(shards), data, seed, rank, world_size, weights(shards, data.weights))
        self.steps = self._sampler.steps
        self._shards, self._data, self._waiting, self._killed = shards, data, waiting, killed
        self._pairs, self._pin = _Pairs(shards, data, seed, memory), pin
        self._ahead = BATCHES_A_WORKER * data.workers  # batches that are asked for at once, each in a slot of its own
        self._asked: deque[Future[Any]] = deque()

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on; earlier ones are not read.

        Raises:
            UserError: the workers cannot be started, or are killed.
            NoBatch: they deliver no batch for `data.stall_timeout_s`, or are killed again; or no pair can be read.
        """
        self._sampler.epoch, self._sampler.first_step = epoch, first_step
        while True:
            try:
                for batch in self._from_workers() if self._data.workers and not self._pairs.at_hand() else self._here():
                    self._sampler.first_step += 1
                    yield batch.pin_memory() if self._pin else batch
                return
            except NoAnswer as e:
                self.close()
                raise NoBatch(str(e)) from e
            except BrokenProcessPool:
                self.close()
                error = NoBatch(
                    "a process that reads the data was killed, mostly because memory is short: use fewer "
                    "--data.workers or a smaller --data.batch-size, then start the same command again"
                )
            self._killed(error)
            self._killed = refuse

    def close(self) -> None:
        """Kills the workers, because a process waits at its end for what they still do: for ever if a disk hangs.

        Then waits for the pool's thread. It notices that they are gone, and must not do so while this process ends.
        """
        for process in multiprocessing.active_children():
            process.kill()
        if "_workers" in vars(self):
            pool, _ = vars(self).pop("_workers")
            pool.shutdown()
            self._asked.clear()

    def _here(self) -> Iterator[Batch]:
        return (self._pairs.batch(places) for places in self._sampler)

    def _from_workers(self) -> Iterator[Batch]:
        pool, slots = self._workers
        while self._asked:  # of an epoch that was left early
            future = self._asked.popleft()
            if not future.cancel():
                self._result(future)
        for number, places in enumerate(self._sampler):
            self._asked.append(pool.submit(_fill, number % self._ahead, places))
            if len(self._asked) == self._ahead:
                yield self._taken(slots)
        while self._asked:
            yield self._taken(slots)

    @cached_property
    def _workers(self) -> tuple[ProcessPoolExecutor, Tensor]:
        """The processes and the slots: uint8 (slots, 2, B, C, H, W). They are made when they are first needed."""
        shape = (self._ahead, 2, self._sampler.share, *split_shape(self._shards, self._data)[2:])
        with starting(f"{self._data.workers} processes that read the data", "--data.workers 0"):
            slots = torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)
            # Forked, to share the slots, the index and the decoded pairs
            context = multiprocessing.get_context("fork")
            pool = ProcessPoolExecutor(self._data.workers, context, _begin, (self._pairs, slots))
            pool.submit(int).result()  # starts them
        return pool, slots

    def _taken(self, slots: Tensor) -> Batch:
        """The oldest batch that was asked for. It is copied out of its slot, which gets another one."""
        slot, good, keys, bad = self._result(self._asked.popleft())
        return Batch(slots[slot, 0].clone(), slots[slot, 1].clone(), torch.tensor(good), keys, bad)

    def _result(self, future: "Future[Any]") -> Any:
        began = time.monotonic()
        while not wait([future], POLL_S).done:
            waited_s = time.monotonic() - began
            self._waiting(waited_s)
            if 0 < self._data.stall_timeout_s < waited_s:
                self.close()
                raise NoBatch(
                    f"{self._shards.folder}: no batch for {self._data.stall_timeout_s:g} s; does the disk answer? "
                    "Start again when it does, or raise --data.stall-timeout-s"
                )
        return future.result()
