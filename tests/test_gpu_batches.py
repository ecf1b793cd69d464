"""Training pairs on a GPU: those of the CPU's loader, and no waiting for them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.gpu import DEVICES, GPU, ranks

from dist_sketch.core.config import DataConfig
from dist_sketch.data.batches import training_batches
from dist_sketch.data.loader import Loader
from dist_sketch.data.shards import Shards


@DEVICES
@pytest.mark.parametrize("device_memory_mb", [1000.0, 0.0], ids=["resident", "copied"])
def test_batches_are_the_loader_s(shards: Path, device: str, device_memory_mb: float) -> None:
    """The GPU is kept busy: a batch's memory must not be used again before the work on it is done."""
    on, opened = ranks(device), Shards(shards, "train")
    data = DataConfig(batch_size=4, workers=2, flip=True, shift=True, freehand=2, device_memory_mb=device_memory_mb)
    got = []
    batches = training_batches(opened, data, on, seed=3)
    for epoch in range(4):
        for batch in batches.epoch(epoch):
            assert {t.device.type for t in (batch.line, batch.sketch, batch.good)} == {device}
            if device == "cuda":
                torch.cuda._sleep(20_000_000)
            got.append((batch.keys, batch.line.clone(), batch.sketch.clone(), batch.good.clone()))
            del batch
    loader = Loader(opened, replace(data, workers=0), seed=3, rank=0, world_size=1)
    expected = [b for epoch in range(4) for b in loader.epoch(epoch)]
    for (keys, *images), batch in zip(got, expected, strict=True):
        assert keys == batch.keys
        for image, other in zip(images, (batch.line, batch.sketch, batch.good), strict=True):
            assert torch.equal(image.cpu(), other)


@GPU
@pytest.mark.parametrize("device_memory_mb", [1000.0, 0.0], ids=["resident", "copied"])
def test_the_host_waits_for_no_batch(shards: Path, device_memory_mb: float) -> None:
    data = DataConfig(batch_size=4, workers=0, flip=True, shift=True, device_memory_mb=device_memory_mb)
    batches = training_batches(Shards(shards, "train"), data, ranks("cuda"), seed=3)
    list(batches.epoch(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(batches.epoch(1))) == 3
    finally:
        torch.cuda.set_sync_debug_mode("default")
