"""Decoded pairs stay in memory: batches do not change, and nothing is read or decoded twice."""

import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_sketch.core.config import DataConfig
from dist_sketch.data.decoded import size_of
from dist_sketch.data.loader import Loader, split_shape
from dist_sketch.data.shards import Shards

PAIR_MB = 2 * 3 * 64 * 64 / 1e6


def loaded(shards: Path, epochs: range, **settings: Any) -> list[tuple[list[str], torch.Tensor, torch.Tensor]]:
    loader = Loader(Shards(shards, "train"), DataConfig(**{"batch_size": 4} | settings), seed=3, rank=0, world_size=1)
    return [(b.keys, b.line.clone(), b.sketch.clone()) for e in epochs for b in loader.epoch(e)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_memory_changes_no_batch(shards: Path, workers: int, flip: bool) -> None:
    streamed = loaded(shards, range(5), workers=workers, flip=flip, memory_mb=0)
    kept = loaded(shards, range(5), workers=workers, flip=flip)
    assert [keys for keys, _, _ in kept] == [keys for keys, _, _ in streamed]
    for (_, line, sketch), (_, other_line, other_sketch) in zip(kept, streamed, strict=True):
        assert torch.equal(line, other_line)
        assert torch.equal(sketch, other_sketch)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_pair_is_read_once_by_all_workers_together(shards: Path, tmp_path: Path, workers: int) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    loader = Loader(
        Shards(copy, "train"), DataConfig(batch_size=1, workers=workers), seed=0, rank=0, world_size=1
    )  # with batches of one, an epoch leaves no pair out
    first = {b.keys[0]: b.line.clone() for b in loader.epoch(0)}
    for tar in copy.glob("*.tar"):
        tar.unlink()
    again = {b.keys[0]: b.line.clone() for b in loader.epoch(1)}
    assert len(again) == 13
    assert all(torch.equal(again[key], line) for key, line in first.items())


@pytest.mark.parametrize(("memory_mb", "kept"), [(13 * PAIR_MB + 1e-6, True), (13 * PAIR_MB - 1e-6, False), (0, False)])
def test_only_what_fits_as_a_whole_is_kept(
    shards: Path, monkeypatch: pytest.MonkeyPatch, memory_mb: float, kept: bool
) -> None:
    reads: list[int] = []
    plain = os.pread
    monkeypatch.setattr("dist_sketch.data.shards.os.pread", lambda *a: reads.append(a[2]) or plain(*a))
    data = DataConfig(batch_size=1, workers=0, memory_mb=memory_mb)
    loader = Loader(Shards(shards, "train"), data, seed=0, rank=0, world_size=1)
    for epoch in range(3):
        for _ in loader.epoch(epoch):
            pass
    assert len(reads) == (13 if kept else 39)


def test_what_augmentation_makes_of_a_pair_does_not_stay(shards: Path) -> None:
    """An augmented pair must not be written back over the decoded one."""
    epochs = [loaded(shards, range(e, e + 1), flip=True, shift=True, workers=0, batch_size=1) for e in (0, 7)]
    together = loaded(shards, range(8), flip=True, shift=True, workers=0, batch_size=1)
    for alone, part in zip(epochs, (together[:13], together[-13:]), strict=True):
        for (key, line, _), (other_key, other_line, _) in zip(alone, part, strict=True):
            assert key == other_key
            assert torch.equal(line, other_line)


def zeros(pair: bytes) -> bytes:
    return bytes(len(pair))


NOT_YET: dict[str, Callable[[bytes], bytes]] = {
    "nothing": zeros,
    "the line only": lambda pair: pair[: len(pair) // 2] + bytes(len(pair) // 2),
    "the sketch only": lambda pair: bytes(len(pair) // 2) + pair[len(pair) // 2 :],
    "all but the last byte": lambda pair: pair[:-1] + bytes([pair[-1] ^ 255]),
    "all but a page": lambda pair: pair[:4096] + bytes(4096) + pair[8192:],
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("there", NOT_YET)
def test_pixels_that_come_after_their_mark_are_read_from_the_shards(
    shards: Path, monkeypatch: pytest.MonkeyPatch, there: str, workers: int
) -> None:
    """Processors such as ARM's may show another process the mark before the pixels."""
    split, data = Shards(shards, "train"), DataConfig(batch_size=1, workers=workers)
    shape = split_shape(split, data)
    memory, late = mmap.mmap(-1, size_of(shape)), (0, 5, 12)

    def epoch() -> list[tuple[list[str], torch.Tensor, torch.Tensor]]:
        loader = Loader(split, data, seed=3, rank=0, world_size=1, memory=memory)  # has seen no pair yet
        batches = [(b.keys, b.line, b.sketch) for b in loader.epoch(0)]
        loader.close()
        return batches

    whole, pair_bytes = epoch(), 2 * 3 * 64 * 64
    for i in late:
        at = len(memory) - (len(split) - i) * pair_bytes
        memory[at : at + pair_bytes] = NOT_YET[there](memory[at : at + pair_bytes])
    read, plain = mmap.mmap(-1, len(split)), Shards.read  # shared with the worker
    monkeypatch.setattr(Shards, "read", lambda self, i, channels: read.__setitem__(i, 1) or plain(self, i, channels))
    for (keys, line, sketch), (right_keys, right_line, right_sketch) in zip(epoch(), whole, strict=True):
        assert keys == right_keys
        assert torch.equal(line, right_line)
        assert torch.equal(sketch, right_sketch)
    assert [i for i, again in enumerate(read[:]) if again] == list(late)
    monkeypatch.setattr(Shards, "read", lambda *_: 1 / 0)
    assert len(epoch()) == 13  # now all are there
