"""Batches of the training split on the device: gathered from a split that lies there, or copied to it one by one."""

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from dist_sketch.core.config import DataConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import node_memory, resident
from dist_sketch.data.decoded import size_of
from dist_sketch.data.loader import Batch, Loader, refuse, split_shape
from dist_sketch.data.shards import Shards


class Batches(Protocol):
    """This rank's shares of the batches; equal whichever way they come."""

    steps: int  # an epoch

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on."""

    def close(self) -> None:
        """Ends the processes that read the data."""


def training_batches(
    shards: Shards,
    data: DataConfig,
    ranks: Ranks,
    seed: int,
    waiting: Callable[[float], None] = lambda _: None,
    killed: Callable[[UserError], None] = refuse,
) -> Batches:
    """This rank's batches on its device. All ranks call this.

    Args:
        waiting: see `Loader`; also `killed`.

    Raises:
        UserError: the ranks cannot share a batch; or the split cannot be read, see `resident.load`.
    """
    shape, rank, world_size = split_shape(shards, data), ranks.rank, ranks.world_size
    gpu = ranks.device.type == "cuda"
    if gpu and math.prod(shape) // 2 * (2 + data.freehand) <= data.device_memory_mb * 1e6:
        split = resident.load(shards, data, ranks, seed)
        return resident.Resident(shards, data, split, seed=seed, rank=rank, world_size=world_size)
    fits = math.prod(shape) <= data.memory_mb * 1e6
    memory = node_memory.shared_by_node(ranks, size_of(shape)) if fits else None
    place = {"rank": rank, "world_size": world_size}
    loader = Loader(shards, data, seed=seed, **place, pin=gpu, memory=memory, waiting=waiting, killed=killed)
    return Copied(loader, ranks.device)


class Copied:
    """A loader's batches, each copied to the device when it is asked for."""

    def __init__(self, loader: Loader, device: torch.device):
        self.steps, self._loader, self._device = loader.steps, loader, device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on.

        None is fetched ahead. The copy still takes place while the GPU computes the step before, because it has a
        stream of its own, and the host does not wait for a step before it asks for the next batch.
        """
        for batch in self._loader.epoch(epoch, first_step):
            yield batch.to(self._device) if self._copies is None else self._copied_beside(batch, self._copies)

    def close(self) -> None:
        """Ends the processes that read the data."""
        self._loader.close()

    def _copied_beside(self, batch: Batch, copies: torch.cuda.Stream) -> Batch:
        with torch.cuda.stream(copies):
            moved = batch.to(self._device, non_blocking=True)
        step = torch.cuda.current_stream(self._device)
        step.wait_stream(copies)
        for tensor in (moved.line, moved.sketch, moved.good):
            tensor.record_stream(step)  # its memory is not used for another batch before this step is done with it
        return moved
