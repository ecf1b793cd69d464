"""In each epoch the ranks together see every pair once, except the last incomplete global batch, in equal steps.

Random plans (samples a shard x ranks x workers x batch x epochs x seeds x variables of a launcher) go through the real
`Loader` on real shards, and `check` judges the result. Negative controls show that `check` finds broken loaders.
"""

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, pairwise, zip_longest
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.manifests import put_index
from torch.utils.data import DistributedSampler

from dist_sketch.core.config import DataConfig
from dist_sketch.core.precision import full_float32
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import pack, recipe
from dist_sketch.data.loader import Batch, Loader
from dist_sketch.data.manifest import read_index, read_manifest
from dist_sketch.data.order import order
from dist_sketch.data.shards import Shards
from dist_sketch.data.verify import verify
from dist_sketch.training.validation import Validation

MOST_RANKS, MOST_WORKERS, MOST_SHARDS, MOST_IN_A_SHARD = 8, 3, 8, 12
SHUFFLED = 12  # two random orders of this many keys are practically never equal
HOSTILE = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "WORKER", "NUM_WORKERS"),
    *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_ARRAY_TASK_ID"),
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "PL_GLOBAL_SEED", "WDS_EPOCH"),
)

Seen = dict[int, list[list[list[str]]]]  # epoch -> rank -> step -> keys
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Plan(NamedTuple):
    a_shard: list[int]  # samples in each shard
    ranks: int
    workers: int
    batch: int
    others: int  # another number of ranks that can share the batch
    seed: int = 0
    epochs: tuple[int, ...] = (0, 1)
    shuffle: bool = True
    memory_mb: float = 100.0  # 0: each pair is decoded in each epoch
    variables: dict[str, str] = {}  # noqa: RUF012

    @property
    def count(self) -> int:
        return sum(self.a_shard)

    @property
    def steps(self) -> int:
        return self.count // self.batch

    def data(self, workers: int) -> DataConfig:
        return DataConfig(batch_size=self.batch, shuffle=self.shuffle, workers=workers, memory_mb=self.memory_mb)


@st.composite
def plans(draw: st.DrawFn, workers: st.SearchStrategy[int]) -> Plan:
    a_shard = draw(st.lists(st.integers(1, MOST_IN_A_SHARD), min_size=1, max_size=MOST_SHARDS))
    ranks = draw(st.integers(1, min(MOST_RANKS, sum(a_shard))))
    most = sum(a_shard) // ranks
    batch = ranks * draw(st.integers(1, min(4, most)) | st.integers(1, most))
    first = draw(st.integers(0, 10**6))
    return Plan(
        a_shard,
        ranks,
        draw(workers),
        batch,
        draw(st.sampled_from([r for r in range(1, MOST_RANKS + 1) if batch % r == 0])),
        draw(st.integers(0, 2**63 - 1)),
        (first, first + 1, first + draw(st.integers(2, 1000)), first + 2000)[: draw(st.integers(2, 4))],
        draw(st.sampled_from((True, True, True, False))),
        draw(st.sampled_from((100.0, 0.0))),
        draw(st.dictionaries(st.sampled_from(HOSTILE), st.sampled_from(("0", "1", "3", "-1", "", "many")))),
    )


# Shards


class Packed:
    """Pairs packed by `pack`: the key is n, all pixels of the line are n, all pixels of the sketch are 255 - n."""

    def __init__(self, folder: Path):
        for side in ("line", "sketch"):
            (folder / f"source/train_{side}").mkdir(parents=True)
            for n in range(MOST_SHARDS * MOST_IN_A_SHARD):
                gray = n if side == "line" else 255 - n
                Image.new("L", (64, 64), gray).save(folder / f"source/train_{side}/{n}.png")
        self.root = folder
        self.manifest = pack.pack(
            recipe.load(str(folder / "source")), folder / "whole", size=64, shard_count=MOST_IN_A_SHARD, workers=1
        )
        index = read_index(folder / "whole", self.manifest, "train")
        self.keys = list(index.keys)
        tars = [(folder / "whole" / s["file"]).read_bytes() for s in self.manifest["splits"]["train"]["shards"]]
        places = zip(index.shards, index.offsets, index.lengths, strict=True)
        self.blocks = [tars[shard][offset : offset + length] for shard, offset, length in places]

    def laid_out(self, a_shard: list[int], only: Iterable[int] | None = None) -> Path:
        """The first sum(a_shard) samples in shards of these sizes; with `only`, the other samples are zeroed."""
        folder = self.root / f"{'-'.join(map(str, a_shard))}{'' if only is None else '-wiped'}"
        if folder.is_dir() and only is None:
            return folder
        folder.mkdir(exist_ok=True)
        kept = set(range(sum(a_shard)) if only is None else only)
        blocks = self.blocks[: sum(a_shard)]
        hashes = [hashlib.sha256(block).hexdigest() for block in blocks]
        index = put_index(folder, self.keys[: len(blocks)], list(map(len, blocks)), hashes)
        shards = []
        for number, size in enumerate(a_shard):
            tar, wiped = b"", b""
            for i in range(sum(a_shard[:number]), sum(a_shard[: number + 1])):
                block = self.blocks[i]
                tar += block
                wiped += block if i in kept else bytes(len(block))
            end = bytes(1024 + -(len(tar) + 1024) % 10240)  # as tar ends
            name = f"train-{number:06d}.tar"
            (folder / name).write_bytes(wiped + end)
            digest = hashlib.sha256(tar + end).hexdigest()
            shards.append({"file": name, "bytes": len(tar + end), "sha256": digest, "count": size})
        split = {"count": sum(a_shard), "has_sketch": True, "shards": shards, "index": index}
        (folder / "manifest.json").write_text(json.dumps({**self.manifest, "splits": {"train": split}}))
        return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return Packed(tmp_path_factory.mktemp("packed"))


def test_the_shards_of_this_file_are_what_pack_makes(packed: Packed) -> None:
    same = packed.laid_out([MOST_IN_A_SHARD] * MOST_SHARDS)
    for file in (packed.root / "whole").glob("*.tar"):
        assert (same / file.name).read_bytes() == file.read_bytes()
    assert json.loads((same / "manifest.json").read_text()) == packed.manifest
    assert verify(packed.laid_out([7, 1, 12, 2])) == {"train": 22}


# What is promised


def in_order(ranks: list[list[list[str]]]) -> list[str]:
    """The keys of an epoch's global batches in order: of each batch, rank 0's share, then rank 1's, and so on."""
    return [key for step in zip_longest(*ranks, fillvalue=[]) for share in step for key in share]


def check(seen: Seen, other: Seen, keys: list[str], batch: int, shuffle: bool) -> None:
    """Checks every promise for `seen`, and that `other` (the same epochs on another number of ranks) agrees."""
    steps, orders = len(keys) // batch, []
    for epoch, ranks in seen.items():
        found = [len(shares) for shares in ranks]
        assert found == [steps] * len(ranks), f"unequal numbers of steps, or not {steps}: {found}"
        sizes = {len(share) for shares in ranks for share in shares}
        assert sizes == {batch // len(ranks)}, f"another share than {batch // len(ranks)}: {sizes}"
        flat = in_order(ranks)
        assert len(set(flat)) == len(flat), "a pair came twice"
        assert set(flat) <= set(keys), "a pair is not of this split"
        assert len(flat) == steps * batch > len(keys) - batch
        assert flat == in_order(other[epoch]), f"another order of epoch {epoch} than on {len(other[epoch])} ranks"
        orders.append(flat)
    if not shuffle:
        assert all(flat == keys[: steps * batch] for flat in orders), "not the manifest's order"
    elif len(keys) >= SHUFFLED:
        assert len({tuple(flat) for flat in [*orders, keys[: steps * batch]]}) == len(orders) + 1, "same order twice"


def keys_of(batch: Batch) -> list[str]:
    """A share's keys, after checking that its images belong to them."""
    assert batch.bad == []
    assert batch.line.shape == batch.sketch.shape == (len(batch.good), 3, 64, 64)
    for key, line, sketch in zip(batch.keys, batch.line[batch.good], batch.sketch[batch.good], strict=True):
        assert (line == int(key)).all(), f"{key} has another line"
        assert (sketch == 255 - int(key)).all(), f"{key} has another sketch"
    return batch.keys


def loaders(folder: Path, plan: Plan, ranks: int, workers: int) -> list[Loader]:
    shards = Shards(folder, "train")
    return [Loader(shards, plan.data(workers), seed=plan.seed, rank=r, world_size=ranks) for r in range(ranks)]


def read(folder: Path, plan: Plan, epochs: Iterable[int], ranks: int, workers: int, first: int = 0) -> Seen:
    """What the real loaders of all ranks return, epoch by epoch."""
    made = loaders(folder, plan, ranks, workers)
    assert {x.steps for x in made} == {plan.steps}
    return {e: [[keys_of(b) for b in x.epoch(e, first)] for x in made] for e in epochs}


def prove(packed: Packed, plan: Plan) -> None:
    folder = packed.laid_out(plan.a_shard)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in plan.variables.items():
            patch.setenv(name, value)
        seen = read(folder, plan, plan.epochs, plan.ranks, plan.workers)
    # Another history: epochs backwards, random numbers drawn before, other ranks, no workers, nothing in memory.
    torch.rand(1), np.random.rand(), random.random()
    other = read(folder, plan._replace(memory_mb=0), plan.epochs[::-1], plan.others, workers=0)
    check(seen, other, packed.keys[: plan.count], plan.batch, plan.shuffle)


@settings(max_examples=120, deadline=None)  # others in each run
@given(plan=plans(workers=st.just(0)))
@example(plan=Plan([10] * 7, 2, 0, 8, 1))  # distributing whole shards would give the ranks 10 and 8 batches
@example(plan=Plan([12], 8, 0, 8, 4))  # one shard for eight ranks
@example(plan=Plan([5, 4], 1, 0, 9, 3, epochs=(0, 1, 2)))  # from epoch 1 on, all is in memory
@example(plan=Plan([1], 1, 0, 1, 1))
def test_every_pair_once_on_any_number_of_ranks(packed: Packed, plan: Plan) -> None:
    prove(packed, plan)


@settings(max_examples=12, deadline=None)
@given(plan=plans(workers=st.integers(1, MOST_WORKERS)))
@example(plan=Plan([10] * 7, 2, 3, 8, 1))
@example(plan=Plan([12], 8, 3, 8, 4))  # more workers than samples
@example(plan=Plan([5, 4], 1, 2, 3, 3, epochs=(0, 1, 2)))  # from epoch 1 on, all is in memory
def test_every_pair_once_through_worker_processes(packed: Packed, plan: Plan) -> None:
    prove(packed, plan)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("value", ["0", "1", "3", "-1", "", "many"])
def test_the_variables_of_launchers_change_nothing(packed: Packed, value: str, workers: int) -> None:
    prove(packed, Plan([10] * 7, 2, workers, 8, 1, variables=dict.fromkeys(HOSTILE, value)))


# Resuming in an epoch


@contextmanager
def reads_of(folder: Path) -> Iterator[Callable[[], list[tuple[int, int, int]]]]:
    """Records (shard, offset, bytes) of each `pread` inside, also in processes that are forked there."""
    log, pread = folder / "reads", os.pread
    log.write_text("")

    def spy(file: int, length: int, offset: int) -> bytes:
        block = pread(file, length, offset)
        with open(log, "a") as f:
            f.write(f"{os.fstat(file).st_ino} {offset} {len(block)}\n")
        return block

    def reads() -> list[tuple[int, int, int]]:
        shards = {p.stat().st_ino: n for n, p in enumerate(sorted(folder.glob("*.tar")))}
        rows = (map(int, line.split()) for line in log.read_text().splitlines())
        return [(shards[file], offset, length) for file, offset, length in rows]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", spy)
        yield reads


@settings(max_examples=16, deadline=None)
@given(plan=plans(workers=st.integers(0, 2)), data=st.data())
def test_the_rest_of_an_epoch_is_found_by_index_on_any_number_of_ranks(
    packed: Packed, plan: Plan, data: st.DataObject
) -> None:
    epoch, first = plan.epochs[0], data.draw(st.integers(0, plan.steps), "first step")
    workers = data.draw(st.integers(0, 2), "workers of the second leg")
    folder = packed.laid_out(plan.a_shard)
    (whole,) = read(folder, plan, [epoch], plan.others, 0).values()
    head = [
        [keys_of(b) for b in islice(x.epoch(epoch), first)] for x in loaders(folder, plan, plan.ranks, plan.workers)
    ]
    # The tars hold only the rest of the epoch, and every read is recorded.
    rest = order(plan.count, plan.seed, epoch, plan.shuffle)[first * plan.batch : plan.steps * plan.batch].tolist()
    wiped = packed.laid_out(plan.a_shard, only=rest)
    with reads_of(wiped) as reads:
        (tail,) = read(wiped, plan, [epoch], plan.others, workers, first).values()
    assert in_order(head) + in_order(tail) == in_order(whole)
    assert [len(shares) for shares in tail] == [plan.steps - first] * plan.others
    assert in_order(tail) == [packed.keys[i] for i in rest]
    index = read_index(wiped, read_manifest(wiped), "train")
    places = [(index.shards[i], index.offsets[i], index.lengths[i]) for i in rest]
    assert sorted(reads()) == sorted(places)


@settings(max_examples=50, deadline=None)
@given(plan=plans(workers=st.just(0)), data=st.data())
def test_samples_that_are_lost_cost_no_other_and_are_named_once(
    packed: Packed, plan: Plan, data: st.DataObject
) -> None:
    """All samples but one may be lost: steps and shares stay equal, and the next one that is left stands in."""
    kept = data.draw(st.sets(st.integers(0, plan.count - 1), min_size=1), "kept")
    made = loaders(packed.laid_out(plan.a_shard, only=kept), plan, plan.ranks, 0)
    for epoch in plan.epochs[:2]:
        ranks = [list(x.epoch(epoch)) for x in made]
        assert [len(shares) for shares in ranks] == [plan.steps] * plan.ranks
        chosen = iter(order(plan.count, plan.seed, epoch, plan.shuffle).tolist())
        for share in (share for step in zip(*ranks, strict=True) for share in step):
            mine = list(islice(chosen, plan.batch // plan.ranks))
            assert keys_of(replace(share, bad=[])) == [packed.keys[i] for i in mine if i in kept]
            shown = [next(j for j in (*range(i, plan.count), *range(i)) if j in kept) for i in mine]
            assert share.line[:, 0, 0, 0].tolist() == shown
            assert share.sketch[:, 0, 0, 0].tolist() == [255 - n for n in shown]
            assert share.good.tolist() == [i in kept for i in mine]
            lost = [packed.keys[i] for i in mine if i not in kept]
            assert len(share.bad) == len(lost)
            assert all(f"sample {key!r} " in sentence for key, sentence in zip(lost, share.bad, strict=True))


# Evaluation


def rank_of(rank: int, ranks: int) -> Any:
    """The part of `Ranks` that shares work."""
    part = SimpleNamespace(rank=rank, world_size=ranks, device=torch.device("cpu"))
    part.share = lambda count: Ranks.share(part, count)
    return part


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 64))
def test_shares_of_an_evaluation_are_each_index_once(count: int, ranks: int) -> None:
    shares = [rank_of(rank, ranks).share(count) for rank in range(ranks)]
    assert shares[0].start == 0
    assert shares[-1].stop == count
    assert all(a.stop == b.start for a, b in pairwise(shares))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("limit", [0, 2])
def test_scores_of_the_validation_split_do_not_depend_on_the_ranks(shards: Path, limit: int) -> None:
    """With all 5 pairs, or the first 2, on 1 to 8 ranks."""
    torch.manual_seed(0)
    generator = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Tanh())

    def scores(ranks: int) -> dict[str, float]:
        sums: list[torch.Tensor] = []
        all_here = Barrier(ranks, timeout=120)

        def all_reduce(values: torch.Tensor) -> torch.Tensor:
            sums.append(values)
            all_here.wait()
            return torch.stack(sums).sum(0)

        def of_a_rank(rank: int) -> dict[str, float]:
            part = rank_of(rank, ranks)
            part.sum = all_reduce
            return Validation(Shards(shards, "train"), 3, part).scores(generator, limit)

        # Switches of the whole process: threads that change them in turns would not leave them as they were.
        with full_float32(torch.device("cpu")), ThreadPoolExecutor(ranks) as threads:
            first, *others = threads.map(of_a_rank, range(ranks))
        assert all(other == first for other in others)
        return first

    alone = scores(1)
    assert 0 < alone["val/ssim"] < 1
    for ranks in range(2, 9):
        assert scores(ranks) == pytest.approx(alone, rel=1e-12)


# Negative controls: `check` must find loaders that break a promise


def cut(keys: list[str], size: int) -> list[list[str]]:
    return [keys[i : i + size] for i in range(0, len(keys), size)]


def shuffled(keys: list[str], *seed: int) -> list[str]:
    return [keys[i] for i in np.random.default_rng(seed).permutation(len(keys))]


def sound(keys: list[str], ranks: int, batch: int, epoch: int) -> list[list[list[str]]]:
    """Keeps every promise."""
    steps = cut(shuffled(keys, epoch)[: len(keys) // batch * batch], batch)
    return [[cut(step, batch // ranks)[rank] for step in steps] for rank in range(ranks)]


def whole_shards(keys: list[str], ranks: int, batch: int, epoch: int) -> list[list[list[str]]]:
    """Each rank gets every `ranks`-th shard of ten."""
    parts = [[key for shard in cut(keys, 10)[rank::ranks] for key in shard] for rank in range(ranks)]
    return [cut(shuffled(part, epoch), batch // ranks) for part in parts]


def whole_shards_of_full_batches(keys: list[str], ranks: int, batch: int, epoch: int) -> list[list[list[str]]]:
    """Whole shards; all ranks stop when the first one has no full batch left."""
    parts = [[b for b in part if len(b) == batch // ranks] for part in whole_shards(keys, ranks, batch, epoch)]
    return [part[: min(map(len, parts))] for part in parts]


def filled_up(keys: list[str], ranks: int, batch: int, epoch: int) -> list[list[list[str]]]:
    """torch's DistributedSampler, which fills the last batch with pairs that were used already."""
    parts = []
    for rank in range(ranks):
        sampler = DistributedSampler(keys, ranks, rank)  # type: ignore[arg-type]
        sampler.set_epoch(epoch)
        parts.append(cut([keys[i] for i in sampler], batch // ranks))
    return parts


def a_seed_a_rank(keys: list[str], ranks: int, batch: int, epoch: int) -> list[list[list[str]]]:
    """Each rank shuffles with its own seed and takes its share of that order."""
    return [sound(shuffled(keys, 1, rank), ranks, batch, epoch)[rank] for rank in range(ranks)]


def halves(keys: list[str], ranks: int, batch: int, epoch: int) -> list[list[list[str]]]:
    """Split by rank twice, as when accelerate prepares a loader that is already split."""
    return [shares[rank::ranks] for rank, shares in enumerate(sound(keys, ranks, batch, epoch))]


def the_next_rank_s(keys: list[str], ranks: int, batch: int, epoch: int) -> list[list[list[str]]]:
    """The right batches, but the ranks have swapped their shares."""
    return sound(keys, ranks, batch, epoch)[::-1]


def a_block_a_rank(keys: list[str], ranks: int, batch: int, epoch: int) -> list[list[list[str]]]:
    """Equal steps, each pair once, but the order is cut into ranks first, which gives other global batches."""
    part = len(keys) // batch * batch // ranks
    return [cut(p, batch // ranks) for p in cut(shuffled(keys, epoch)[: part * ranks], part)]


def one_order(keys: list[str], ranks: int, batch: int, epoch: int) -> list[list[list[str]]]:
    """Shuffled once for all epochs."""
    return sound(keys, ranks, batch, 0)


def from_the_run_s_stream(keys: list[str], ranks: int, batch: int, epoch: int) -> list[list[list[str]]]:
    """The order depends on what was drawn before."""
    return sound(keys, ranks, batch, int(torch.randint(10**9, ())))


def of_another_split(keys: list[str], ranks: int, batch: int, epoch: int) -> list[list[list[str]]]:
    return sound([f"val {key}" for key in keys], ranks, batch, epoch)


def unequal_shares(keys: list[str], ranks: int, batch: int, epoch: int) -> list[list[list[str]]]:
    """The second rank takes one pair from the first."""
    shares = sound(keys, ranks, batch, epoch)
    if ranks > 1:
        for first, second in zip(*shares[:2], strict=True):
            second.insert(0, first.pop())
    return shares


KEYS = [str(n) for n in range(70)]
StandIn = Callable[[list[str], int, int, int], list[list[list[str]]]]


def judge(loader: StandIn, ranks: int = 2, others: int = 1) -> None:
    seen, other = ({e: loader(KEYS, n, 8, e) for e in (3, 4)} for n in (ranks, others))
    check(seen, other, KEYS, 8, shuffle=True)


@pytest.mark.parametrize(("ranks", "others"), [(1, 2), (2, 1), (2, 4), (8, 2)])
def test_check_lets_a_sound_loader_pass(ranks: int, others: int) -> None:
    judge(sound, ranks, others)


@pytest.mark.parametrize(
    ("loader", "ranks", "complaint"),
    [
        (whole_shards, 2, r"unequal numbers of steps, or not 8: \[10, 8\]"),
        (whole_shards_of_full_batches, 2, r"unequal numbers of steps, or not 8: \[7, 7\]"),
        (halves, 2, r"unequal numbers of steps, or not 8: \[4, 4\]"),
        (filled_up, 4, r"unequal numbers of steps, or not 8: \[9, 9, 9, 9\]"),
        (unequal_shares, 2, "another share than 4"),
        (a_seed_a_rank, 2, "a pair came twice"),
        (of_another_split, 2, "a pair is not of this split"),
        (the_next_rank_s, 2, "another order of epoch 3 than on 1 ranks"),
        (a_block_a_rank, 2, "another order of epoch 3 than on 1 ranks"),
        (from_the_run_s_stream, 2, "another order of epoch 3 than on 1 ranks"),
        (one_order, 2, "same order twice"),
    ],
)
def test_check_finds_a_loader_that_breaks_a_promise(loader: StandIn, ranks: int, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        judge(loader, ranks)


def test_check_finds_stock_webdataset(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives 7 shards of 10 to 2 ranks (read from the environment) as 10 and 8 batches."""
    folder = packed.laid_out([10] * 7)

    def stock(keys: list[str], ranks: int, batch: int, epoch: int) -> list[list[list[str]]]:
        parts = []
        for rank in range(ranks):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(ranks))
            tars = sorted(map(str, folder.glob("*.tar")))
            samples = webdataset.WebDataset(tars, shardshuffle=False, nodesplitter=webdataset.split_by_node)
            parts.append(cut([sample["__key__"] for sample in samples], batch // ranks))
        return parts

    with pytest.raises(AssertionError, match=r"unequal numbers of steps, or not 8: \[10, 8\]"):
        judge(stock)


@pytest.mark.parametrize("half", ["line", "sketch"])
def test_keys_of_finds_pairs_torn_apart(packed: Packed, half: str) -> None:
    plan = Plan([5], 1, 0, 5, 1)
    (batch,) = loaders(packed.laid_out([5]), plan, 1, 0)[0].epoch(0)
    keys_of(batch)
    with pytest.raises(AssertionError, match=f"has another {half}"):
        keys_of(replace(batch, **{half: getattr(batch, half).roll(1, 0)}))


def test_check_finds_an_order_that_is_not_the_manifest_s() -> None:
    seen, other = ({e: sound(KEYS, n, 8, 0) for e in (3, 4)} for n in (2, 1))
    with pytest.raises(AssertionError, match="not the manifest's order"):
        check(seen, other, KEYS, 8, shuffle=False)
