"""Shards on a web server on this machine that misbehaves: batches stay those of the disk, or a sentence comes."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import fsspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.range_server import RangeServer, serving

from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config, DataConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.places import Address, place
from dist_sketch.data import node_cache, resident, sources, store
from dist_sketch.data.loader import Batch, Loader, NoBatch
from dist_sketch.data.node_cache import NodeCache
from dist_sketch.data.shards import BadSample, Shards
from dist_sketch.data.store import Access, NoAnswer, Range, Remote, joined, read_file
from dist_sketch.tracking.wandb_run import dataset

NO_CACHE = Access(cache_mb=0, patience_s=30)
SHORT = Access(cache_mb=0, patience_s=0.6)
DATA = DataConfig(batch_size=4, workers=0, memory_mb=0, flip=True, shift=True)


@pytest.fixture(scope="module")
def served(shards: Path) -> Iterator[RangeServer]:
    with serving(shards) as server:
        yield server


@pytest.fixture
def web(served: RangeServer) -> Iterator[RangeServer]:
    yield served
    served.faults, served.always, served.delay_s = [], None, 0.0
    served.requests.clear()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(node_cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def batches(shards: Shards, data: DataConfig = DATA, first_step: int = 0, ranks: int = 1) -> list[Batch]:
    loaders = [Loader(shards, data, seed=3, rank=rank, world_size=ranks) for rank in range(ranks)]
    try:
        return [b for step in zip(*(x.epoch(1, first_step) for x in loaders), strict=True) for b in step]
    finally:
        for loader in loaders:
            loader.close()


def remote(web: RangeServer, access: Access = NO_CACHE, split: str = "train") -> Shards:
    return Shards(Address(web.address), split, access)


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.keys == b.keys
        assert torch.equal(a.line, b.line)
        assert torch.equal(a.sketch, b.sketch)
        assert torch.equal(a.good, b.good)


@pytest.mark.parametrize(("workers", "ranks", "first_step"), [(0, 1, 0), (2, 1, 0), (0, 2, 1)])
def test_batches_are_those_of_the_disk(
    web: RangeServer, shards: Path, workers: int, ranks: int, first_step: int
) -> None:
    data = replace(DATA, workers=workers)
    assert_equal(
        batches(remote(web), data, first_step, ranks), batches(Shards(shards, "train"), DATA, first_step, ranks)
    )


@pytest.mark.parametrize("fault", [500, 503, 429, "half", "drop"])
def test_what_fails_is_asked_for_again(web: RangeServer, shards: Path, fault: int | str) -> None:
    read, web.faults = remote(web), [fault, fault]
    assert_equal(batches(read), batches(Shards(shards, "train")))
    assert not web.faults


def test_neighbours_are_fetched_together(web: RangeServer, shards: Path) -> None:
    """13 pairs lie in three shards."""
    read, local = remote(web), Shards(shards, "train")
    found = dict(read.stream(range(13), 3))
    assert web.shards_asked == 3
    assert [str(s.name) for s in found.values() if not isinstance(s, BadSample)] == list(local.keys)
    web.requests.clear()
    batches(read, replace(DATA, batch_size=13))
    assert web.shards_asked == 3
    web.requests.clear()
    good, left_out = sources.open_source(Address(web.address), "val").read_good(range(5), 64, 3)
    assert (list(good), left_out, web.shards_asked) == ([0, 1, 2, 3, 4], [], 1)


def test_the_requests_of_a_batch_run_at_once(web: RangeServer) -> None:
    read, web.delay_s = remote(web), 0.2
    began = time.monotonic()
    read.read_several([0, 2, 4, 5, 7, 9, 10, 12], 3)
    one_by_one = 0.2 * len({name for _, name, _ in web.requests if name.endswith(".tar")})
    assert web.shards_asked > 2
    assert time.monotonic() - began < one_by_one


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2**25), st.integers(1, 2**21)), max_size=12))
def test_joined_ranges_hold_each_range(asked: list[tuple[str, int, int]]) -> None:
    parts = [Range(*one) for one in asked]
    found = joined(parts)
    assert sorted(i for _, numbers in found for i in numbers) == list(range(len(parts)))
    for whole, numbers in found:
        assert whole.length <= max(store.BLOCK, *(parts[i].length for i in numbers))
        for i in numbers:
            assert whole.name == parts[i].name
            assert whole.offset <= parts[i].offset
            assert parts[i].offset + parts[i].length <= whole.offset + whole.length


def test_a_refusal_is_a_sentence(web: RangeServer) -> None:
    read, web.always = remote(web), 403
    with pytest.raises(NoBatch, match=rf"^{web.address}/train-00000\d.tar: the server refuses \(403\)"):
        batches(read, replace(DATA, workers=1))
    web.always = "whole"
    with pytest.raises(NoBatch, match=f"^{web.address}: the server sends whole files .*it ignores Range"):
        batches(read)


@pytest.mark.parametrize("fault", ["hang", 500])
def test_a_server_that_does_not_answer_is_a_sentence(web: RangeServer, fault: int | str) -> None:
    read, web.always = remote(web, SHORT), fault
    with pytest.raises(NoBatch, match=rf"^{web.address}/train-.*: the server does not answer \(\d+ tr\w+ in .* s, the"):
        batches(read, replace(DATA, workers=1))
    with pytest.raises(NoAnswer, match="the server does not answer"):
        list(read.stream([0], 3))


def test_a_wrong_address_is_said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's patience is for a server that has answered once."""
    monkeypatch.setattr(store, "UNKNOWN_S", 0.5)
    monkeypatch.setattr(store, "LONGEST_PAUSE_S", 0.2)
    with pytest.raises(NoAnswer, match=r"does not answer \(\d+ tries in .*; is the address right, and is the .*\?$"):
        read_file(Address("http://127.0.0.1:9/faces"), "manifest.json")


def test_a_server_that_is_killed_in_an_epoch(shards: Path) -> None:
    with serving(shards) as server:
        read = Shards(Address(server.address), "train", SHORT)
        loader = Loader(read, replace(DATA, workers=1), seed=3, rank=0, world_size=1)
        epoch = loader.epoch(0)
        next(epoch)
    with pytest.raises(NoBatch, match=r"the server does not answer .*; start again when it does"):
        list(epoch) + list(loader.epoch(1))
    loader.close()


def test_a_changed_or_missing_shard_costs_its_samples_alone(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(shards, folder)
    with serving(folder) as server:
        read = Shards(Address(server.address), "train", NO_CACHE)
        changed, missing = folder / read.files[0], folder / read.files[2]
        changed.write_bytes(changed.read_bytes()[:-20_000][::-1])
        missing.unlink()
        found = batches(read, replace(DATA, shuffle=False, batch_size=13))[0]
        assert sum("is not what the manifest says" in text for text in found.bad) == 5
        assert sum("cannot be read at sample" in text for text in found.bad) == 3
        assert len(found.keys) == 5
        asked = [name for method, name, _ in server.requests if method == "GET" and name == changed.name]
        assert len(asked) == 2  # wrong bytes are fetched once more


def test_resident_and_remote_are_equal(web: RangeServer, shards: Path, alone: Any) -> None:
    one, other = (resident.load(read, DATA, alone, 0) for read in (remote(web), Shards(shards, "train")))
    assert torch.equal(one.images, other.images)
    assert web.shards_asked == 3


# The node's cache


def test_what_was_fetched_is_not_fetched_again(web: RangeServer, shards: Path, own_cache: Path) -> None:
    access = NO_CACHE._replace(cache_mb=10)
    assert_equal(batches(remote(web, access)), batches(Shards(shards, "train")))
    asked = web.shards_asked
    assert_equal(batches(remote(web, access), replace(DATA, workers=2)), batches(Shards(shards, "train")))
    assert web.shards_asked == asked
    for file in own_cache.iterdir():  # as if a process had been killed while it wrote
        data = bytearray(file.read_bytes())
        data[2000:9000] = bytes(7000)
        file.write_bytes(data)
    assert_equal(batches(remote(web, access)), batches(Shards(shards, "train")))
    assert web.shards_asked > asked


def test_two_processes_share_the_cache(web: RangeServer, own_cache: Path) -> None:
    read = remote(web, NO_CACHE._replace(cache_mb=10))  # whose connections the forked processes cannot use

    def reads() -> None:
        found = [sample for i in range(13) for _, sample in read.stream([i], 3)]
        os._exit(sum(isinstance(sample, BadSample) for sample in found))

    read.read(0, 3)
    both = [multiprocessing.get_context("fork").Process(target=reads) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    web.requests.clear()
    assert len(list(remote(web, NO_CACHE._replace(cache_mb=10)).stream(range(13), 3))) == 13
    assert web.shards_asked == 0


def used(folder: Path) -> int:
    return sum(512 * file.stat().st_blocks for file in folder.iterdir())


def digest(number: int) -> str:
    return f"{number:064x}"


def test_the_cache_keeps_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, block = [digest(i) for i in range(4)], os.urandom(100_000)
    others = NodeCache([digest(8), digest(9)], 1.0, tmp_path)
    for number, age in ((8, 50), (9, 100)):
        others.write(digest(number), 0, block)
        os.utime(tmp_path / f"{digest(number)}.shard", (time.time() - age,) * 2)
    (tmp_path / "notes.txt").write_bytes(bytes(300_000))
    cache = NodeCache(mine, 1.0, tmp_path)
    for i in range(8):
        cache.write(mine[i % 4], 100_000 * i, block)
    # Of other shards, the older file has made room; the newer one, and all that is no shard, is left.
    assert {p.name for p in tmp_path.iterdir()} == {f"{d}.shard" for d in (*mine, digest(8))} | {"notes.txt"}
    for i in range(8, 40):
        cache.write(mine[i % 4], 100_000 * i, block)
    assert not (tmp_path / f"{digest(8)}.shard").exists()
    assert used(tmp_path) - 300_000 <= 1.1e6
    assert cache.read(mine[0], 0, 100_000) == block  # what lies there stays
    assert cache.read(mine[1], 10**9, 100) == b""
    looks: list[Any] = []
    monkeypatch.setattr(os, "scandir", looks.append)  # a full folder is not looked through at each sample
    cache.write(mine[0], 0, block)
    assert looks == []


def test_a_split_leaves_the_others_of_its_set_in_the_cache(web: RangeServer, tmp_path: Path) -> None:
    list(remote(web, Access()).stream(range(13), 3))
    kept = set(tmp_path.glob("cache/*.shard"))
    small = Access(cache_mb=used(tmp_path / "cache") / 1e6)
    list(Shards(Address(web.address), "val", small).stream(range(5), 3))
    assert kept <= set(tmp_path.glob("cache/*.shard"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_that_is_removed_costs_nothing_else(web: RangeServer, tmp_path: Path, workers: int) -> None:
    read = remote(web, Access(cache_mb=1))
    loader = Loader(read, replace(DATA, workers=workers), seed=3, rank=0, world_size=1)
    epoch = loader.epoch(0)
    next(epoch)
    shutil.rmtree(tmp_path / "cache")
    list(epoch)
    loader.close()


def test_without_room_there_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, web: RangeServer) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert len(list(remote(web, Access()).stream(range(13), 3))) == 13
    monkeypatch.setattr(node_cache, "LEFT_FREE", 10**18)
    nearly_full = NodeCache([digest(1)], 10, tmp_path / "nearly")
    nearly_full.write(digest(1), 0, b"bytes")
    assert list((tmp_path / "nearly").iterdir()) == []
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "link", tmp_path / "file"):
        cache = NodeCache([digest(1)], 10, folder)
        cache.write(digest(1), 0, b"bytes")
        assert cache.read(digest(1), 0, 5) == b""


# Addresses


def test_an_address_survives_config_and_toml(tmp_path: Path) -> None:
    text = "s3://bucket/faces"
    for given_as in (text, f"{text}/"):
        config = cfg.from_dict(Config, {"data": {"shards": given_as}}, "a file")
        assert isinstance(config.data.shards, Address)
        assert config.data.shards.resolve() == text
        saved = json.loads(json.dumps(cfg.to_dict(config)))
        assert saved["data"]["shards"] == text
        assert cfg.from_dict(Config, saved, "a file") == config
    assert place("~/faces") == Path.home() / "faces"
    assert place(Path("s3/faces")) == Path("s3/faces")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("s3://key:secret@bucket/faces", "would get into files and logs"),
        ("https://user:pass@host/faces", "would get into files and logs"),
        ("https://host/faces?X-Amz-Signature=1", "has no '?'"),
        ("ftp://host/faces", "is neither a folder nor an address"),
        ("file:///faces", "is neither a folder nor an address"),
        ("https:///faces", "is neither a folder nor an address"),
        ("hf://user/faces", "an address of the Hub is hf://datasets/USER/NAME"),
        ("http://example.org/faces", "DIST_SKETCH_ALLOW_HTTP=1"),
    ],
)
def test_addresses_that_are_refused(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as e:
        place(text)
    assert "secret" not in str(e.value)
    assert "pass@" not in str(e.value)
    assert "Signature" not in str(e.value)
    with pytest.raises(UserError, match=f"a file: data.shards: .*{why}"):
        cfg.from_dict(Config, {"data": {"shards": text}}, "a file")


def test_http_can_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place("http://127.0.0.1:8000/faces") == "http://127.0.0.1:8000/faces"
    monkeypatch.setenv("DIST_SKETCH_ALLOW_HTTP", "1")
    assert place("http://example.org/faces") / "manifest.json" == "http://example.org/faces/manifest.json"


def test_a_missing_package_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: str) -> Any:
        raise ImportError("Install s3fs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", none)
    with pytest.raises(UserError, match=r"s3://bucket/x: needs the package s3fs: pip install 'dist-sketch\[remote\]'"):
        read_file(Address("s3://bucket/x"), "manifest.json")


def test_a_place_without_shards(web: RangeServer, tmp_path: Path) -> None:
    with serving(tmp_path) as server, pytest.raises(UserError, match=r"/faces/manifest.json: cannot be read"):
        Shards(Address(server.address), "train")
    with pytest.raises(OSError, match="larger than 0 MB"):
        read_file(Address(web.address), "manifest.json", 100)
    with pytest.raises(UserError, match="one address of shards is drawn at a time"):
        sources.open_source([Address(web.address), tmp_path], "val")
    assert Remote(Address(web.address)).names() is None


def test_a_worker_that_is_stopped_is_told_by_the_parent(web: RangeServer) -> None:
    """A process that neither reads nor fails is still ended after data.stall_timeout_s."""
    loader = Loader(remote(web), replace(DATA, workers=1, stall_timeout_s=1.5), seed=3, rank=0, world_size=1)
    epoch = loader.epoch(0)
    next(epoch)
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(NoBatch, match=f"{web.address}: no batch for 1.5 s"):
        list(loader.epoch(1))


def test_without_a_time_out_a_batch_may_take_long(web: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    loader = Loader(remote(web), replace(DATA, workers=1, stall_timeout_s=0.0), seed=3, rank=0, world_size=1)
    monkeypatch.setattr("dist_sketch.data.loader.POLL_S", 0.02)
    monkeypatch.setattr(loader, "_waiting", waited.append)
    web.delay_s = 0.2
    assert len(list(loader.epoch(0))) > 1
    assert max(waited) > 0.1
    loader.close()


def test_wandb_is_told_the_address() -> None:
    """As a text: a reference would ask the store, and need the store's own packages."""
    wandb, address = MagicMock(), Address("gs://bucket/faces")
    made = dataset(address, "ab" * 32).to_wandb(wandb)
    assert wandb.Artifact.call_args.kwargs["metadata"] == {"sha256": "ab" * 32, "address": f"{address}/manifest.json"}
    made.add_reference.assert_not_called()
