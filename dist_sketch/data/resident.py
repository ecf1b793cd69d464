"""The decoded training split in a device's memory: a batch is gathered there, and the host sends no images."""

import signal
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import repeat
from multiprocessing import TimeoutError as Stalled
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_sketch.core import cpus, launcher
from dist_sketch.core.config import DataConfig
from dist_sketch.core.errors import SharedError, UserError
from dist_sketch.core.ranks import Ranks
from dist_sketch.core.workers import workers
from dist_sketch.data import freehand, pixels
from dist_sketch.data.loader import Batch, nothing_readable, stand_ins
from dist_sketch.data.order import Place, PlaceSampler
from dist_sketch.data.selection import weights
from dist_sketch.data.shards import BadSample, Shards

THREADS = 4  # that decode; Pillow and hashing let each other run
PROCESSES = 16  # at most, that draw freehand versions
VERSIONS_A_PROCESS = 64  # with fewer, starting it takes longer than it saves
STILL = pixels.Move(0, 0, False)


class ResidentSplit(NamedTuple):
    """A whole split on a device."""

    images: Tensor  # uint8 (N, 2 + K, H, W, C): line, sketch, K freehand lines; channels last as the networks want them
    bad: dict[int, str]  # index -> sentence, for the pairs that cannot be read


def load(shards: Shards, data: DataConfig, ranks: Ranks, seed: int) -> ResidentSplit:
    """Reads the split onto every rank's device. Each pair is read and decoded by one rank, which sends it to all.

    Args:
        seed: of the freehand versions.

    Raises:
        UserError: no pair can be read, reading one takes longer than `data.stall_timeout_s`, or the device's memory is
            too small.
    """
    own = ranks.share(len(shards))
    part, own_bad = _decode(shards, data, own)
    _draw_freehand(part, [str(shards.keys[i]) for i in own], seed)
    try:
        images = torch.empty((len(shards), *part.shape[1:]), dtype=torch.uint8, device=ranks.device)
    except torch.OutOfMemoryError as e:
        raise UserError(
            f"data.device_memory_mb = {data.device_memory_mb:g}: the device has no room for the training split "
            f"({part[0].numel() * len(shards) / 1e6:.0f} MB); set it to 0"
        ) from e
    images[own.start : own.stop] = part
    bad: dict[int, str] = {}
    for source, (start, stop, found) in enumerate(ranks.gather((own.start, own.stop, own_bad))):
        ranks.broadcast_tensor(images[start:stop], source)
        bad |= found
    if len(bad) == len(shards):
        raise SharedError(nothing_readable(shards))
    return ResidentSplit(images, bad)


def _decode(shards: Shards, data: DataConfig, own: range) -> tuple[Tensor, dict[int, str]]:
    """The pairs `own` on the host, room for freehand lines, and a sentence for each that cannot be read."""
    channels, size = data.channels, shards.size
    images = torch.empty((len(own), 2 + data.freehand, size, size, channels), dtype=torch.uint8)

    def read(group: range) -> dict[int, str]:
        bad = {}
        for i, sample in zip(group, shards.read_several(group, channels), strict=True):
            if isinstance(sample, BadSample):
                bad[i] = str(sample)
                continue
            assert sample.sketch is not None  # checked before training starts
            for half, image in enumerate((sample.line, sample.sketch)):
                images[i - own.start, half] = image.permute(1, 2, 0)
        return bad

    groups = [own[start : start + shards.group] for start in range(0, len(own), shards.group)]
    # The threads of such a pool do not keep the process alive when a disk does not answer.
    with ThreadPool(THREADS) as pool:
        found: dict[int, str] = {}
        problems = pool.imap(read, groups)
        try:
            for _ in groups:
                found |= problems.next(data.stall_timeout_s or None)
        except Stalled:
            raise UserError(
                f"{shards.folder}: no pair for {data.stall_timeout_s:g} s; does the disk answer? "
                "Start again when it does, or raise --data.stall-timeout-s"
            ) from None
    return images, found


def _draw_freehand(images: Tensor, keys: list[str], seed: int) -> None:
    """Draws the freehand versions of each line of `images` (N, 2 + K, H, W, C) into their places."""
    count = images.shape[1] - 2
    own_cores = len(cpus.usable()) // max(1, launcher.number("LOCAL_WORLD_SIZE", 1))
    processes = min(own_cores, PROCESSES, len(keys) * count // VERSIONS_A_PROCESS)
    lines = (line.permute(2, 0, 1).numpy() for line in images[:, 0])
    if not count:
        return
    if processes > 1:
        # Threads would wait for each other. The signal that asks a run to stop reaches these processes, too.
        begin = partial(signal.signal, signal.SIGUSR2, signal.SIG_IGN)
        with workers(processes, "spawn", "--data.device-memory-mb 0", begin) as pool:
            found = pool.map(freehand.versions, lines, repeat(seed), repeat(count), keys, chunksize=4)
            _put(images, found)
    else:
        _put(images, map(freehand.versions, lines, repeat(seed), repeat(count), keys))


def _put(images: Tensor, versions: Iterable[NDArray[np.uint8]]) -> None:
    """Puts the versions (K, C, H, W) of each line into `images` (N, 2 + K, H, W, C)."""
    for places, drawn in zip(images[:, 2:], versions, strict=True):
        places.copy_(torch.from_numpy(drawn).permute(0, 2, 3, 1))


class Resident:
    """The training split as batches of this rank, bit-equal to those of `Loader`, but on the device of `split`.

    Args:
        split: what `load` returned for these shards.
    """

    def __init__(
        self, shards: Shards, data: DataConfig, split: ResidentSplit, *, seed: int, rank: int, world_size: int
    ):
        self._sampler = PlaceSampler(len(shards), data, seed, rank, world_size, weights(shards, data.weights))
        self.steps = self._sampler.steps
        self._keys, self._size, self._data, self._seed = shards.keys, shards.size, data, seed
        self._images, self._bad = split.images, split.bad
        # The pair that is shown for a pair: itself, or its stand-in.
        self._shown = list(range(len(shards)))
        for i in split.bad:
            self._shown[i] = next(j for j in stand_ins(i, len(shards)) if j not in split.bad)
        # Source indices of all possible shifts along a side: (2 * most + 1, side); then those of mirrored rows.
        self._most = pixels.most_shift(shards.size) if data.shift else 0
        sources = torch.stack([pixels.shifted(shards.size, by) for by in range(-self._most, self._most + 1)])
        device = split.images.device
        self._rows, self._columns = sources.to(device), torch.cat([sources, sources.flip(-1)]).to(device)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on. The host never waits for the device."""
        self._sampler.epoch, self._sampler.first_step = epoch, first_step
        steps = list(self._sampler)
        plan = self._plan(steps)
        for own, (pair, shown, row, column, good) in zip(steps, plan, strict=True):
            # Each (B, H, W): which pair, row and column each pixel comes from
            pair, rows, columns = pair[:, None, None], self._rows[row][:, :, None], self._columns[column][:, None, :]
            line = self._images[pair, shown[:, None, None], rows, columns].permute(0, 3, 1, 2)  # (B, C, H, W)
            sketch = self._images[:, 1][pair, rows, columns].permute(0, 3, 1, 2)
            keys = [str(self._keys[i]) for _, i, _ in own if i not in self._bad]
            yield Batch(line, sketch, good.bool(), keys, [self._bad[i] for _, i, _ in own if i in self._bad])

    def close(self) -> None:
        """Does nothing, as no process reads."""

    def _plan(self, steps: list[list[Place]]) -> Tensor:
        """For each step and slot the pair, which of its lines, the moves' places in the tables, and if it is its own.

        The whole epoch is sent in one copy, int64 (steps, 5, B), because a copy a step would cost more than the gather.
        """
        plan = torch.tensor([self._place(place) for own in steps for place in own], dtype=torch.int64)
        plan = plan.view(len(steps), self._sampler.share, 5).transpose(1, 2)
        device = self._rows.device
        return (plan.pin_memory() if device.type == "cuda" else plan).to(device, non_blocking=True)

    def _place(self, place: Place) -> tuple[int, int, int, int, bool]:
        pair, move, number = self._shown[place.pair], STILL, None
        if self._data.flip or self._data.shift or self._data.freehand:
            generator = pixels.pair_generator(self._seed, place.epoch, place.stream(str(self._keys[pair])))
            size, flip, shift = self._size, self._data.flip, self._data.shift
            move = pixels.draw_move(generator, size, size, flip=flip, shift=shift)
            number = pixels.draw_version(generator, self._data.freehand)
        column = move.columns + self._most + move.mirror * len(self._rows)
        line = 0 if number is None else 2 + number
        return pair, line, move.rows + self._most, column, place.pair not in self._bad
