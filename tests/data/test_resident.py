"""Batches that are gathered on the device from a split that lies there are bit-equal to the loader's."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ranked import Result, run
from torch.utils._python_dispatch import TorchDispatchMode

from dist_sketch.core.config import DataConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import batches as batches_module
from dist_sketch.data import resident
from dist_sketch.data.batches import training_batches
from dist_sketch.data.loader import Batch, Loader
from dist_sketch.data.resident import Resident, ResidentSplit
from dist_sketch.data.shards import Shards

SEED = 5  # of the freehand versions
SPLIT_MB = 13 * 2 * 3 * 64 * 64 / 1e6


@pytest.fixture(scope="module")
def damaged(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the keys 11 to 13, the last ones, for which the first one stands in; and without 7."""
    folder = tmp_path_factory.mktemp("damaged") / "shards"
    shutil.copytree(shards, folder)
    (folder / "train-000002.tar").unlink()
    opened = Shards(folder, "train")
    with open(folder / "train-000001.tar", "r+b") as f:
        f.seek(int(opened.offsets[6]) + int(opened.lengths[6]) // 2)
        f.write(b"damaged")
    return folder


@pytest.fixture(scope="module")
def splits(alone: Ranks, shards: Path, damaged: Path) -> dict[tuple[bool, int], tuple[Shards, ResidentSplit]]:
    """(damaged, channels) -> the shards, and what `load` makes of them, with two freehand versions of each line."""
    found = {}
    for is_damaged, channels in ((False, 1), (False, 3), (True, 1), (True, 3)):
        opened = Shards(damaged if is_damaged else shards, "train")
        data = DataConfig(channels=channels, freehand=2)  # type: ignore[arg-type]
        found[is_damaged, channels] = opened, resident.load(opened, data, alone, SEED)
    return found


def same(one: Batch, other: Batch) -> bool:
    tensors = ("line", "sketch", "good")
    assert all(getattr(one, t).dtype == getattr(other, t).dtype for t in tensors)
    return (one.keys, one.bad) == (other.keys, other.bad) and all(
        torch.equal(getattr(one, t), getattr(other, t)) for t in tensors
    )


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([(1, 1), (1, 4), (1, 13), (2, 2), (2, 6), (3, 12), (4, 4)]),
    st.tuples(*[st.booleans()] * 4),
    st.sampled_from([1, 3]),
    st.one_of(st.none(), st.integers(0, 2**63 - 1)),
    st.integers(0, 10**6),
    st.data(),
)
def test_batches_are_the_loader_s(
    splits: dict[tuple[bool, int], tuple[Shards, ResidentSplit]],
    sizes: tuple[int, int],
    switches: tuple[bool, bool, bool, bool],
    channels: Literal[1, 3],
    own_seed: int | None,
    epoch: int,
    draw: st.DataObject,
) -> None:
    (ranks, batch_size), (flip, shift, shuffle, is_damaged) = sizes, switches
    # The versions that `splits` holds are those of one seed.
    seed, freehand = (SEED, 2) if own_seed is None else (own_seed, 0)
    data = DataConfig(batch_size=batch_size, workers=0, channels=channels, shuffle=shuffle, memory_mb=0)
    data = replace(data, flip=flip, shift=shift, freehand=freehand)
    shards, split = splits[is_damaged, channels]
    rank, first = draw.draw(st.integers(0, ranks - 1)), draw.draw(st.integers(0, 13 // batch_size))
    where = {"seed": seed, "rank": rank, "world_size": ranks}
    loader, ours = Loader(shards, data, **where), Resident(shards, data, split, **where)  # type: ignore[arg-type]
    assert ours.steps == loader.steps
    pairs = list(zip(loader.epoch(epoch, first), ours.epoch(epoch, first), strict=True))
    assert len(pairs) == loader.steps - first
    assert all(same(one, other) for one, other in pairs)


def test_images_come_in_the_networks_memory_format(
    splits: dict[tuple[bool, int], tuple[Shards, ResidentSplit]],
) -> None:
    shards, split = splits[False, 3]
    batch = next(Resident(shards, DataConfig(batch_size=4), split, seed=0, rank=0, world_size=1).epoch(0))
    assert batch.line.is_contiguous(memory_format=torch.channels_last)
    assert batch.sketch.is_contiguous(memory_format=torch.channels_last)


class Watch(TorchDispatchMode):
    """Records the operations, and refuses those whose result the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "copy_"), name
        assert "device" not in (kwargs or {}), name  # nothing is sent
        self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_a_batch_is_a_handful_of_operations_and_no_question_to_the_device(
    splits: dict[tuple[bool, int], tuple[Shards, ResidentSplit]],
) -> None:
    """Only views, two lookups in tables, and a gather for each half."""
    shards, split = splits[True, 3]
    data = DataConfig(batch_size=4, flip=True, shift=True)
    batches = Resident(shards, data, split, seed=0, rank=0, world_size=1).epoch(0)
    next(batches)  # the plan of the epoch is sent before it
    with Watch() as watch:
        assert len(list(batches)) == 2
    kernels = [name for name in watch.seen if name not in ("unbind", "select", "unsqueeze", "slice", "permute", "view")]
    assert sorted(kernels) == sorted(["index", "index", "index", "index", "_to_copy"] * 2)


# Filling it


def load_on_ranks(ranks: Ranks) -> Result:
    """Child: what this rank read itself, and what it has."""
    import os

    shards = Shards(Path(os.environ["SHARDS"]), "train")
    own: list[int] = []
    plain = Shards.read
    Shards.read = lambda self, i, channels: own.append(i) or plain(self, i, channels)  # type: ignore[method-assign,func-returns-value]
    split = resident.load(shards, DataConfig(freehand=2), ranks, SEED)
    return {"own": sorted(own), "images": split.images, "bad": split.bad}


@pytest.mark.parametrize("world", [2, 3])
def test_each_pair_is_read_by_one_rank_and_all_ranks_have_it(
    splits: dict[tuple[bool, int], tuple[Shards, ResidentSplit]], tmp_path: Path, world: int
) -> None:
    shards, split = splits[True, 3]
    results = run(world, load_on_ranks, tmp_path, SHARDS=str(shards.folder))
    assert [i for r in results for i in r["own"]] == list(range(13))
    good = [i for i in range(13) if i not in split.bad]
    assert len(good) == 9
    for r in results:
        assert r["bad"] == split.bad
        assert torch.equal(r["images"][good], split.images[good])


def test_processes_draw_the_same_versions(
    splits: dict[tuple[bool, int], tuple[Shards, ResidentSplit]], alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here they are started, which takes longer than to draw 26 small versions."""
    started: list[int] = []
    plain = resident.workers
    monkeypatch.setattr(resident, "workers", lambda count, *more: started.append(count) or plain(count, *more))
    monkeypatch.setattr(resident, "VERSIONS_A_PROCESS", 13)
    monkeypatch.setattr(resident.cpus, "usable", lambda: [0, 1, 2])
    shards, split = splits[False, 1]
    again = resident.load(shards, DataConfig(channels=1, freehand=2), alone, SEED)
    assert started == [2]
    assert torch.equal(again.images, split.images)


def test_a_split_without_a_readable_pair_is_a_sentence(shards: Path, tmp_path: Path, alone: Ranks) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    for file in folder.glob("*.tar"):
        file.unlink()
    with pytest.raises(UserError, match="^" + f"{folder}: not one of the 13 train pairs can be read; "):
        resident.load(Shards(folder, "train"), DataConfig(), alone, seed=0)


def test_a_device_without_room_is_a_sentence(shards: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = torch.empty

    def full(*sizes: Any, **options: Any) -> torch.Tensor:
        if "device" in options:
            raise torch.OutOfMemoryError
        return plain(*sizes, **options)

    monkeypatch.setattr(resident.torch, "empty", full)
    with pytest.raises(UserError, match=r"^data.device_memory_mb = 1000: the device has no room for .* \(0 MB\)"):
        resident.load(Shards(shards, "train"), DataConfig(), alone, seed=0)


STALLED = """
import sys, time
from pathlib import Path
from dist_sketch.core.config import DataConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import resident
from dist_sketch.data.shards import Shards

Shards.read = lambda *_: time.sleep(3600)
try:
    resident.load(Shards(Path(sys.argv[1]), "train"), DataConfig(stall_timeout_s=0.5), Ranks(expect_world_size=1), 0)
except UserError as e:
    print(e)
"""


def test_a_disk_that_does_not_answer_is_a_sentence_and_the_process_ends(shards: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", STALLED, shards], capture_output=True, text=True, timeout=120)
    assert ended.stdout.startswith(f"{shards}: no pair for 0.5 s; does the disk answer?")
    assert ended.returncode == 0, ended.stderr


# Which way the batches come


@pytest.mark.parametrize(
    ("device", "device_memory_mb", "freehand", "expected"),
    [
        ("cuda", SPLIT_MB, 0, Resident),
        ("cuda", SPLIT_MB - 1e-6, 0, batches_module.Copied),
        ("cuda", SPLIT_MB, 1, batches_module.Copied),
        ("cuda", 2 * SPLIT_MB, 2, Resident),
        ("cuda", 2 * SPLIT_MB - 1e-6, 2, batches_module.Copied),
        ("cuda", 0.0, 0, batches_module.Copied),
        ("cpu", 1000.0, 0, batches_module.Copied),
    ],
)
def test_a_split_that_fits_lies_on_the_gpu(
    shards: Path,
    alone: Ranks,
    splits: dict[tuple[bool, int], tuple[Shards, ResidentSplit]],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    device_memory_mb: float,
    freehand: int,
    expected: type,
) -> None:
    monkeypatch.setattr(alone, "device", torch.device(device))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(resident, "load", lambda *_: splits[False, 3][1])
    started: list[int] = []
    monkeypatch.setattr(batches_module, "Loader", lambda *a, **k: started.append(1) or Loader(*a, **k))
    data = DataConfig(batch_size=4, workers=0, device_memory_mb=device_memory_mb, freehand=freehand)
    made = training_batches(Shards(shards, "train"), data, alone, seed=0)
    assert type(made) is expected
    assert made.steps == 3
    assert len(started) == (expected is not Resident)


@pytest.mark.parametrize("memory_mb", [0.0, 100.0])
def test_on_a_cpu_the_batches_are_the_loader_s(shards: Path, alone: Ranks, memory_mb: float) -> None:
    opened, data = Shards(shards, "train"), DataConfig(batch_size=4, workers=0, memory_mb=memory_mb, flip=True)
    ours = training_batches(opened, data, alone, seed=3)
    theirs = Loader(opened, data, seed=3, rank=0, world_size=1)
    for epoch, first in ((0, 0), (1, 2)):
        pairs = list(zip(ours.epoch(epoch, first), theirs.epoch(epoch, first), strict=True))
        assert len(pairs) == 3 - first
        assert all(same(one, other) for one, other in pairs)


def test_no_batch_is_fetched_before_it_is_asked_for(
    shards: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is continued counts the batches it has used."""
    read: list[int] = []
    plain = Shards.read
    monkeypatch.setattr(Shards, "read", lambda self, i, channels: read.append(i) or plain(self, i, channels))
    data = replace(DataConfig(batch_size=2, workers=0), shuffle=False)
    batches = training_batches(Shards(shards, "train"), data, alone, seed=0).epoch(0)
    assert read == []
    next(batches), next(batches)
    assert read == [0, 1, 2, 3]
