"""The ranks of one machine share the memory of the decoded pairs; where they cannot, each has its own."""

import os
from pathlib import Path

import pytest
import torch
from support.ranked import Result, run

from dist_sketch.core.config import DataConfig
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import node_memory
from dist_sketch.data.batches import training_batches
from dist_sketch.data.loader import Loader
from dist_sketch.data.node_memory import Offer
from dist_sketch.data.shards import Shards

WORLD, EPOCHS = 3, 4
DATA = DataConfig(batch_size=WORLD, workers=0, flip=True)


def decode(ranks: Ranks) -> Result:
    """Child: which pairs this rank decodes in some epochs, and its batches."""
    if ranks.rank == 0 and "NO_FILES" in os.environ:
        del os.memfd_create
    if ranks.rank == 0 and "OTHER_MACHINE" in os.environ:
        node_memory.BOOT_ID = Path(os.environ["OTHER_MACHINE"])
    if ranks.rank == 2 and "FORBIDDEN" in os.environ:
        node_memory.os.readlink = lambda path: os.stat("/nowhere")  # type: ignore[assignment]
    read: list[int] = []
    plain = Shards.read
    Shards.read = lambda self, i, channels: read.append(i) or plain(self, i, channels)  # type: ignore[method-assign,func-returns-value]
    batches = training_batches(Shards(Path(os.environ["SHARDS"]), "train"), DATA, ranks, seed=1)
    seen = []
    for epoch in range(EPOCHS):
        for batch in batches.epoch(epoch):
            seen.append((batch.keys, batch.line, batch.sketch))
            ranks.wait()  # else two ranks could decode the same pair at once
    return {"read": read, "seen": seen}


@pytest.mark.parametrize(
    ("variable", "groups"),
    [
        ("NOTHING", [[0, 1, 2]]),
        ("NO_FILES", [[0], [1, 2]]),  # rank 0's system has no files in memory
        ("OTHER_MACHINE", [[0], [1, 2]]),  # rank 0 is on another one
        ("FORBIDDEN", [[0, 1], [2]]),  # rank 2 may not open the files of others
    ],
)
def test_each_pair_is_decoded_once_by_the_ranks_that_share_memory(
    shards: Path, tmp_path: Path, variable: str, groups: list[list[int]]
) -> None:
    (tmp_path / "boot_id").write_text("another machine")
    results = run(WORLD, decode, tmp_path, SHARDS=str(shards), **{variable: str(tmp_path / "boot_id")})
    for group in groups:
        read = [i for rank in group for i in results[rank]["read"]]
        assert len(read) == len(set(read))
    # In these epochs a rank meets pairs that another one has decoded.
    met = [len({k for keys, _, _ in r["seen"] for k in keys}) for r in results]
    assert sum(met) > sum(len(r["read"]) for r in results)
    for rank, result in enumerate(results):
        loader = Loader(Shards(shards, "train"), DATA, seed=1, rank=rank, world_size=WORLD)
        expected = [b for epoch in range(EPOCHS) for b in loader.epoch(epoch)]
        for (keys, line, sketch), batch in zip(result["seen"], expected, strict=True):
            assert keys == batch.keys
            assert torch.equal(line, batch.line)
            assert torch.equal(sketch, batch.sketch)


def test_another_process_s_file_under_the_same_number_is_not_taken(tmp_path: Path) -> None:
    """Ranks in containers of one machine may count their processes separately."""
    with open(tmp_path / "file", "w+b") as f:
        f.truncate(100)
        path = f"/proc/{os.getpid()}/fd/{f.fileno()}"
        assert node_memory.opened(Offer("machine", path, "dist_sketch-123"), 100) is None
        memory = node_memory.opened(Offer("machine", path, "file"), 100)
        assert memory is not None
        assert len(memory) == 100


@pytest.mark.parametrize("memory_mb", [0.0, 0.1])
def test_no_memory_is_shared_for_what_is_not_kept(
    shards: Path, monkeypatch: pytest.MonkeyPatch, memory_mb: float
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(node_memory, "shared_by_node", lambda ranks, size: asked.append(size))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    data = DataConfig(batch_size=4, workers=0, memory_mb=memory_mb)
    training_batches(Shards(shards, "train"), data, Ranks(expect_world_size=1), seed=0)
    assert asked == []
