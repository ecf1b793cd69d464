import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import face
from PIL import Image
from support.forks import wait_until
from support.manifests import Columns, change_training

from dist_sketch.core.config import DataConfig
from dist_sketch.core.errors import UserError
from dist_sketch.data import loader, pack, recipe
from dist_sketch.data.loader import Batch, Loader
from dist_sketch.data.manifest import read_index, read_manifest
from dist_sketch.data.order import order
from dist_sketch.data.shards import BadSample, Shards

DATA = DataConfig(batch_size=4, workers=0)


# Real shards: 13 pairs, five to a shard, 64 px.


def epoch_of(
    shards: Path, data: DataConfig, epoch: int = 0, first_step: int = 0, *, ranks: int = 1, seed: int = 3
) -> list[Batch]:
    """The batches of one epoch: those of all ranks for step 0, then for step 1, and so on."""
    read = Shards(shards, "train")
    loaders = [Loader(read, data, seed=seed, rank=r, world_size=ranks) for r in range(ranks)]
    return [b for step in zip(*(x.epoch(epoch, first_step) for x in loaders), strict=True) for b in step]


def keys_of(batches: list[Batch]) -> list[str]:
    return [k for b in batches for k in b.keys]


def packed_image(path: Path) -> np.ndarray:
    """A source image as the shards must return it: (3, 64, 64)."""
    with Image.open(path) as image:
        return np.array(image.resize((64, 64), Image.Resampling.BICUBIC).convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_pair_once_and_a_pair_is_a_pair(shards: Path, pairs: Path, workers: int, ranks: int) -> None:
    expected = [str(Shards(shards, "train").keys[i]) for i in order(13, 3, 0, True)[:12]]
    batches = epoch_of(shards, replace(DATA, workers=workers), ranks=ranks)
    assert keys_of(batches) == expected
    for batch in batches:
        assert batch.bad == []
        assert batch.line.dtype == batch.sketch.dtype == torch.uint8
        assert batch.line.shape == batch.sketch.shape == (4 // ranks, 3, 64, 64)
        for key, line, sketch in zip(batch.keys, batch.line, batch.sketch, strict=True):
            assert np.array_equal(line, packed_image(pairs / "train_line" / f"{key}.png"))
            assert np.array_equal(sketch, packed_image(pairs / "train_sketch" / f"{key}.png"))


def test_a_sample_knows_its_name_and_the_size_it_had(shards: Path) -> None:
    read = Shards(shards, "val")
    assert len(read) == 5
    assert read.has_sketch
    assert read.size == 64
    sample = read.read(4, channels=1)
    assert (sample.name, sample.source_size) == ("18", (80, 80))
    assert sample.line.shape == (1, 64, 64)
    assert sample.sketch is not None
    assert sample.sketch.shape == (1, 64, 64)


def test_epochs_go_on_in_new_orders_with_the_same_workers(shards: Path) -> None:
    train = Loader(Shards(shards, "train"), replace(DATA, workers=2), seed=3, rank=0, world_size=1)
    assert train.steps == 3
    epochs = [keys_of(list(train.epoch(e))) for e in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
    next(train.epoch(1))  # an epoch that is abandoned must not leak into the next
    assert keys_of(list(train.epoch(0, 1))) == epochs[0][4:]
    assert keys_of(list(train.epoch(0))) == epochs[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_numbers_are_left_alone(shards: Path, workers: int) -> None:
    # Dropout uses torch's global generator: if the loader used it too, the run would depend on the workers.
    train = Loader(
        Shards(shards, "train"),
        replace(DATA, workers=workers, flip=True, shift=True),
        seed=0,
        rank=0,
        world_size=1,
    )
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    assert len([*train.epoch(0), *train.epoch(1), *train.epoch(1, 2)]) == 7
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]  # type: ignore[index]


# Augmentation


def by_key(batches: list[Batch]) -> dict[str, bytes]:
    return {
        k: line.numpy().tobytes() + sketch.numpy().tobytes()
        for b in batches
        for k, line, sketch in zip(b.keys, b.line[b.good], b.sketch[b.good], strict=True)
    }


def test_augmentation_depends_on_seed_epoch_and_key_alone(shards: Path) -> None:
    data = replace(DATA, batch_size=13, flip=True, shift=True)  # an epoch has all 13 keys
    expected = by_key(epoch_of(shards, data))
    assert by_key(epoch_of(shards, replace(data, workers=2))) == expected
    assert by_key(epoch_of(shards, data, ranks=13)) == expected
    assert by_key(epoch_of(shards, replace(data, shuffle=False))) == expected
    assert by_key(epoch_of(shards, data)) == expected
    plain = by_key(epoch_of(shards, replace(data, flip=False, shift=False)))
    for other in (by_key(epoch_of(shards, data, epoch=1)), by_key(epoch_of(shards, data, seed=4)), plain):
        assert sum(other[k] != v for k, v in expected.items()) > 9


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("flip", "shift"), [(True, False), (False, True), (True, True)])
def test_both_halves_get_one_draw(tmp_path: Path, flip: bool, shift: bool, workers: int) -> None:
    for side in ("line", "sketch"):
        (tmp_path / f"data/train_{side}").mkdir(parents=True)
        for n in range(1, 17):  # both halves are the same picture
            face(n)[0].save(tmp_path / f"data/train_{side}/{n}.png")
    pack.pack(recipe.load(str(tmp_path / "data")), tmp_path / "shards", size=64, workers=1)
    data = replace(DATA, flip=flip, shift=shift, workers=workers)
    batches = epoch_of(tmp_path / "shards", data)
    assert all(torch.equal(b.line, b.sketch) for b in batches)
    plain = by_key(epoch_of(tmp_path / "shards", DATA))
    changed = sum(by_key(batches)[k] != v for k, v in plain.items())
    assert changed > 12 if shift else 2 < changed < 14


# Damage

Damage = Callable[[Path], None]


def flip_byte(shard: Path) -> None:
    with tarfile.open(shard) as tar:
        place = next(m.offset_data + m.size // 2 for m in tar if m.name == "7.sketch.png")
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
    shard.write_bytes(content)


def truncate(shard: Path) -> None:
    with tarfile.open(shard) as tar:
        os.truncate(shard, next(m.offset for m in tar if m.name == "7.sketch.png"))  # at a member's boundary


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Callable[[Damage], Path]:
    """Copies the shards and damages the one that holds keys 6 to 10."""

    def damage(how: Damage) -> Path:
        shutil.copytree(shards, tmp_path / "shards")
        how(tmp_path / "shards" / "train-000001.tar")
        return tmp_path / "shards"

    return damage


@pytest.mark.parametrize(
    ("how", "lost"), [(flip_byte, ["7"]), (truncate, ["7", "8", "9", "10"]), (Path.unlink, ["6", "7", "8", "9", "10"])]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_named_counted_and_costs_no_other_pair(
    damaged: Callable[[Damage], Path], shards: Path, how: Damage, lost: list[str], workers: int
) -> None:
    folder = damaged(how)
    read = Shards(folder, "train")
    for i, key in enumerate(read.keys):
        if key in lost:
            with pytest.raises(BadSample, match=f"^{folder / 'train-000001.tar'}: .*{str(key)!r}"):
                read.read(i, 3)
    data = replace(DATA, batch_size=6, shuffle=False, workers=workers)
    batches, good = epoch_of(folder, data), epoch_of(shards, data)
    assert keys_of(batches) == [k for k in keys_of(good) if k not in lost]
    sentences = [s for b in batches for s in b.bad]
    assert len(sentences) == len(lost)
    for key, sentence in zip(lost, sentences, strict=True):
        assert "train-000001.tar: " in sentence
        assert repr(key) in sentence
    assert by_key(batches) == {k: v for k, v in by_key(good).items() if k not in lost}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_mb", [0.0, 100.0])
def test_the_next_readable_pair_stands_in(
    damaged: Callable[[Damage], Path], shards: Path, workers: int, channels: Literal[1, 3], memory_mb: float
) -> None:
    """So a share is always full and holds only real pairs, augmented as in their own places."""
    data = replace(DATA, shuffle=False, channels=channels, memory_mb=memory_mb, flip=True, shift=True)
    folder = damaged(Path.unlink)  # keys 6 to 10
    for epoch in (0, 1):
        good, lost = epoch_of(folder, replace(data, batch_size=10, workers=workers), epoch, ranks=2)
        (undamaged,) = epoch_of(shards, replace(data, batch_size=13), epoch)
        assert (good.good.tolist(), good.keys, good.bad) == ([True] * 5, ["1", "2", "3", "4", "5"], [])
        assert (lost.good.tolist(), lost.keys, len(lost.bad)) == ([False] * 5, [], 5)
        assert lost.good.dtype == torch.bool
        for half in ("line", "sketch"):
            assert torch.equal(getattr(good, half), getattr(undamaged, half)[:5])
            assert torch.equal(getattr(lost, half), getattr(undamaged, half)[[10] * 5])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_split_without_a_readable_pair_is_a_sentence(shards: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    for file in (tmp_path / "shards").glob("*.tar"):
        file.unlink()
    with pytest.raises(UserError) as e:
        epoch_of(tmp_path / "shards", replace(DATA, workers=workers))
    assert str(e.value).startswith(f"{tmp_path / 'shards'}: not one of the 13 train pairs can be read; ")
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("side", ["line", "sketch"])
def test_a_manifest_that_tears_pairs_apart_is_seen(shards: Path, tmp_path: Path, side: str) -> None:
    # The hashes are right, but the bytes are not the pair that the index names.
    shutil.copytree(shards, tmp_path / "shards")
    folder = tmp_path / "shards"

    def swap(index: Columns, _: Any) -> None:
        index["key"][:2] = index["key"][1::-1]

    if side == "line":
        change_training(folder, swap)
    else:  # a shard of lines without sketches replaces the pairs
        other = lines_alone(tmp_path)
        change_training(folder, lambda index, _: index.update(other))
    with pytest.raises(BadSample, match=r"train-000000.tar: sample '\d'"):
        Shards(folder, "train").read(0, 3)


def lines_alone(tmp_path: Path) -> Columns:
    """Packs the lines without sketches over the shards; returns their index."""
    (tmp_path / "lines/val_line").mkdir(parents=True)
    for n in range(1, 14):
        face(n)[0].save(tmp_path / "lines/val_line" / f"{n}.png")
    pack.pack(recipe.load(str(tmp_path / "lines")), tmp_path / "other", size=64, shard_count=5, workers=1)
    for shard in (tmp_path / "other").glob("val-*.tar"):
        shutil.copy(shard, tmp_path / "shards" / shard.name.replace("val", "train"))
    manifest = read_manifest(tmp_path / "other")
    rows = read_index(tmp_path / "other", manifest, "val").rows()
    keys, _, _, lengths, hashes = map(list, zip(*rows, strict=True))
    return {"key": keys, "length": lengths, "sha256": hashes}


def test_no_such_split(shards: Path) -> None:
    with pytest.raises(UserError, match=r"shards: has no split 'test'; it has train, val$"):
        Shards(shards, "test")


# Workers that are in trouble


READS = """
import os, signal, sys, time
from pathlib import Path
from dist_sketch.core.config import DataConfig
from dist_sketch.core.errors import UserError
from dist_sketch.data import loader
from dist_sketch.data.shards import Shards

{disturb}
data = DataConfig(batch_size=2, workers=2, stall_timeout_s=float(sys.argv[2]), memory_mb=0)
batches = loader.Loader(Shards(Path(sys.argv[1]), "train"), data, seed=3, rank=0, world_size=1)
try:
    keys = []
    for batch in batches.epoch(0):
        keys += batch.keys
        {between}
    print(keys)
    batches.close()  # an error has closed it
except UserError as e:
    print("error:", e)
"""
STALLS = "Shards.read = lambda *_: time.sleep(3600)"
DIES = "Shards.read = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
DIES_LATE = """
read, count = Shards.read, 0
def reads(*arguments):
    global count
    count += 1
    return read(*arguments) if count < 5 else os.kill(os.getpid(), signal.SIGKILL)
Shards.read = reads
"""


def reads(
    shards: Path,
    disturb: str = "",
    stall_s: float = 600,
    *,
    between: str = "",
    within: tuple[object, ...] = (),
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """What a process with two workers prints: the keys of an epoch, or a sentence."""
    command = [
        *map(str, within),
        sys.executable,
        "-c",
        READS.format(disturb=disturb, between=between),
        str(shards),
        str(stall_s),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **env})


def keys_of_epoch_0(shards: Path) -> str:
    return f"{[str(Shards(shards, 'train').keys[i]) for i in order(13, 3, 0, True)[:12]]}\n"


def test_workers_that_give_nothing_are_given_up_with_a_sentence(shards: Path) -> None:
    """They also do not keep the process alive, although they ignore the signal that would end them."""
    ended = reads(shards, STALLS, 1.0)
    assert ended.stdout.startswith(f"error: {shards}: no batch for 1 s; does the disk answer?")
    assert (ended.returncode, ended.stderr) == (0, "")


# While the training process computes
KILL = "import multiprocessing; multiprocessing.active_children()[0].kill(); time.sleep(0.5)"


@pytest.mark.parametrize(
    ("disturb", "between"), [(DIES, ""), (DIES_LATE, ""), ("", KILL)], ids=["at its first pair", "later", "at rest"]
)
def test_a_worker_that_is_killed_is_noticed_at_once_and_the_disk_is_not_blamed(
    shards: Path, disturb: str, between: str
) -> None:
    ended = reads(shards, disturb, between=between)  # else it would take 600 s
    assert ended.stdout.startswith("error: a process that reads the data was killed, mostly because memory is short")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_worker_s_own_fault_stays_one(shards: Path) -> None:
    ended = reads(shards, "def fails(*_): raise ValueError('on purpose')\nShards.read = fails")
    assert ended.returncode == 1
    assert ended.stderr.endswith("ValueError: on purpose\n")


def test_a_long_path_of_the_temporary_folder_is_no_hindrance(shards: Path, tmp_path: Path) -> None:
    """A socket in it could not be opened: such paths have at most 107 characters."""
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    ended = reads(shards, TMPDIR=str(folder))
    assert (ended.stdout, ended.stderr) == (keys_of_epoch_0(shards), "")


def shared_memory_of(kb: int, filled_kb: int = 0) -> tuple[object, ...]:
    """Begins a command with so much of /dev/shm, in a view of the folders that no other process has."""
    fill = f"head -c {filled_kb}k /dev/zero > /dev/shm/fill; " if filled_kb else ""
    mount = f'mount -t tmpfs -o size={kb}k tmpfs /dev/shm && {{ {fill} exec "$@"; }}'
    return "unshare", "-m", "sh", "-c", mount, "sh"


needs_mounts = pytest.mark.skipif(
    subprocess.run([*map(str, shared_memory_of(64)), "true"], capture_output=True).returncode != 0,
    reason="this user may not mount",
)


@needs_mounts
def test_a_small_dev_shm_is_enough(shards: Path) -> None:
    """Containers have 64 MB of it; here a batch has more than there is at all."""
    ended = reads(shards, within=shared_memory_of(64))
    assert (ended.stdout, ended.stderr) == (keys_of_epoch_0(shards), "")


@needs_mounts
def test_a_full_dev_shm_is_named(shards: Path) -> None:
    ended = reads(shards, within=shared_memory_of(64, filled_kb=64))
    assert ended.stdout.startswith("error: 2 processes that read the data cannot be started ([Errno 28] No space left")
    assert "is /dev/shm full or missing" in ended.stdout
    assert (ended.returncode, ended.stderr) == (0, "")


def test_closing_leaves_nothing_that_the_end_of_the_process_waits_for(shards: Path) -> None:
    """A thread of the pool that still notices the workers' end may close what the interpreter's end writes to."""
    train = Loader(Shards(shards, "train"), replace(DATA, workers=2), seed=3, rank=0, world_size=1)
    for _ in range(2):  # a closed loader can be used again
        threads = set(threading.enumerate())
        next(train.epoch(0))
        new = set(threading.enumerate()) - threads  # those of earlier tests may end meanwhile
        assert new
        train.close()
        assert not new & set(threading.enumerate())
        wait_until(lambda: not multiprocessing.active_children(), "the end of the killed workers")


def test_who_waits_is_asked_whether_to_go_on(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "POLL_S", 0.01)
    monkeypatch.setattr(Shards, "read", lambda *_: time.sleep(3600))
    waited: list[float] = []

    def give_up(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            raise loader.NoBatch

    data = replace(DATA, workers=1)
    train = Loader(Shards(shards, "train"), data, seed=3, rank=0, world_size=1, waiting=give_up)
    try:
        with pytest.raises(loader.NoBatch):
            next(train.epoch(0))
    finally:
        train.close()
    assert waited == sorted(waited)
    assert len(waited) == 3
