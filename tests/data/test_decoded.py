"""Decoded pairs stay in memory: batches do not change, and nothing is read or decoded twice."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_sketch.core.config import DataConfig
from dist_sketch.data.loader import Loader
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
