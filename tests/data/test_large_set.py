"""A set of many pairs: what opening it, and its first batch, cost a process for each pair."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_sketch.bench import large_set
from dist_sketch.core.config import DataConfig
from dist_sketch.data.loader import Loader
from dist_sketch.data.order import order
from dist_sketch.data.shards import Shards

MANY, FEW, BATCH = 100_000, 1000, 4


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Sets of which only the pairs of the first batch exist."""
    folder = tmp_path_factory.mktemp("large")
    for count in (FEW, MANY):
        large_set.write(folder / f"{count}", count, order(count, 0, 0, shuffle=True)[:BATCH].tolist())
    return {count: folder / f"{count}" for count in (FEW, MANY)}


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def kept_and_peak(shards: Path) -> tuple[int, int]:
    """Bytes that a rank has, and had at most, when its first batch is there."""
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    opened = Shards(shards, "train")
    data = DataConfig(batch_size=BATCH, workers=0, memory_mb=0.0)
    loader = Loader(opened, data, seed=0, rank=0, world_size=1)
    batch = next(loader.epoch(0))
    assert batch.bad == []
    assert sorted(batch.keys) == sorted(opened.keys[i] for i in order(len(opened), 0, 0, shuffle=True)[:BATCH])
    now, peak = tracemalloc.get_traced_memory()
    return now - before, peak - before


@pytest.mark.usefixtures("traced")
def test_a_pair_costs_a_rank_few_bytes(sets: dict[int, Path]) -> None:
    """Less than 300 MB for a million pairs, most of which is free again at once."""
    kept_and_peak(sets[FEW])  # imports and caches
    (kept, peak), (few_kept, few_peak) = kept_and_peak(sets[MANY]), kept_and_peak(sets[FEW])
    assert (kept - few_kept) / (MANY - FEW) < 110
    assert (peak - few_peak) / (MANY - FEW) < 300


def test_its_manifest_stays_small(sets: dict[int, Path]) -> None:
    few, many = ((sets[count] / "manifest.json").stat().st_size for count in (FEW, MANY))
    assert many < few + 250 * MANY / large_set.A_SHARD


def test_each_pair_has_its_place(sets: dict[int, Path]) -> None:
    opened = Shards(sets[MANY], "train")
    assert len(opened) == len(set(opened.keys)) == MANY
    for i in (0, large_set.A_SHARD - 1, large_set.A_SHARD, MANY - 1):
        place = divmod(i, large_set.A_SHARD)
        assert opened.keys[i] == f"{i:07d}"
        assert (opened.shard_numbers[i], opened.offsets[i]) == (place[0], place[1] * opened.lengths[i])
