"""Shards in a bucket, from the command line: packed into it, verified, trained on by two processes, drawn from."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL
from support import s3
from support.forks import Ended, Forks

from dist_sketch.core.errors import UserError
from dist_sketch.core.places import Address
from dist_sketch.data import local_copy, node_cache, upload
from dist_sketch.data.shards import Shards
from dist_sketch.data.store import Remote
from dist_sketch.data.verify import verify
from dist_sketch.slurm import doctor
from dist_sketch.training.loop import STOPPED

FACES = Address(f"s3://{s3.BUCKET}/faces")


def stops_in(step: str) -> None:
    """Hook: asks for a stop in a step."""
    from dist_sketch.training import loop
    from dist_sketch.training.run import Run

    train_batch = loop.train_batch

    def asking(run: Run, batch: Any) -> None:
        if run.state.step + 1 == int(step):
            os.kill(os.getpid(), signal.SIGUSR2)
        train_batch(run, batch)

    loop.train_batch = asking


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks("test_remote_flow", tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3.bucket() as variables, pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("cache"))
        patch.setenv(node_cache.VARIABLE, cache)
        yield {**variables, node_cache.VARIABLE: cache}


@pytest.fixture(scope="module")
def packed(env: dict[str, str], pairs: Path, forks: Forks) -> Ended:
    """The same shards as those of the fixture `shards`, in the bucket."""
    done = forks.run("pack", pairs, "--out", FACES, "--size", 64, "--shard-count", 5, "--workers", 1, **env)
    assert done.code == 0, done.err
    return done


def test_pack_puts_the_same_shards_there(packed: Ended, shards: Path) -> None:
    there = s3.files()
    assert {path.rpartition("/")[2] for path in there.ls(FACES, detail=False)} == {p.name for p in shards.iterdir()}
    for file in shards.iterdir():
        assert there.cat_file(FACES / file.name) == file.read_bytes(), file.name
    assert f"{FACES}: train: 13 samples in 3 shard(s)" in packed.out


def test_training_stops_and_resumes_as_on_the_disk(
    packed: Ended, env: dict[str, str], forks: Forks, shards: Path, tmp_path: Path
) -> None:
    options = ("train", *SMALL, "--data.workers", 1, "--train.epochs", 1, "--train.validate-limit", 2)
    for step, run in ((0, "disk"), (2, "bucket"), (0, "bucket")):
        place = shards if run == "disk" else FACES
        hooks = {1: ("stops_in", step)}
        done = forks.run_ranks(2, *options, "--data.shards", place, "--out", tmp_path / run, hooks=hooks, **env)
        assert [rank.code for rank in done] == [STOPPED if step else 0] * 2, done[0].err
    ends = [tmp_path / run / "checkpoints" / "step-00000003" for run in ("disk", "bucket")]
    for name in ("generator.safetensors", "discriminator.safetensors"):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes()
    assert json.loads((tmp_path / "bucket" / "config.json").read_text())["config"]["data"]["shards"] == FACES
    out = tmp_path / "drawn"
    drawing = ("infer", "--run", tmp_path / "bucket", "--input", FACES, "--out", out, "--no-scores")
    drawn = forks.run(*drawing, **env)
    assert drawn.code == 0, drawn.err
    assert len(list((out / "sketch").iterdir())) == 5
    assert json.loads((out / "infer.json").read_text())["input"] == FACES


def test_verify_and_doctor(packed: Ended, shards: Path, tmp_path: Path) -> None:
    assert verify(FACES) == {"train": 13, "val": 5}
    assert doctor._shards(FACES).state == "good"
    there, bad = s3.files(), Address(f"s3://{s3.BUCKET}/bad")
    for file in shards.iterdir():
        there.put_file(str(file), bad / file.name)
    data = bytearray((shards / "train-000001.tar").read_bytes())
    data[600] ^= 1
    there.pipe_file(bad / "train-000001.tar", bytes(data))
    there.pipe_file(bad / "train-000009.tar", b"")
    there.rm_file(bad / "val-000000.tar")
    with pytest.raises(UserError, match="the shards differ from the manifest") as e:
        verify(bad)
    for text in (
        "train-000001.tar: key 6: its bytes have another SHA-256",
        "val-000000.tar: is missing",
        "train-000009.tar: is not in the manifest",
    ):
        assert text in str(e.value)
    assert "is missing or has another length" in doctor._shards(bad).found
    with pytest.raises(UserError, match="cannot be copied"), local_copy.staged(bad, tmp_path / "copy"):
        pass


def test_a_node_can_keep_a_copy(packed: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local_copy.staged(FACES, tmp_path / "copy") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert Shards(FACES, "train").folder == tmp_path / "copy"
    assert not (tmp_path / "copy").exists()


def test_what_lies_there_is_not_lost(packed: Ended, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds packed shards already; choose another --out, or replace them"):
        upload.look(FACES, force=False)
    for address, why in (
        (f"s3://{s3.BUCKET}", "holds .*, and no shards"),
        ("s3://no-such-bucket/faces", "cannot be written .*; is there such a bucket"),
        ("https://host/faces", "a web server takes no files"),
        ("hf://datasets/me/faces", "add --push me/faces"),
    ):
        with pytest.raises(UserError, match=why):
            upload.look(Address(address), force=True)
    again = Address(f"s3://{s3.BUCKET}/again")
    there = s3.files()
    there.put_file(str(shards / "train-000000.tar"), again / "train-000000.tar")
    there.pipe_file(again / "train-000007.tar", b"of an upload that was stopped")
    there.pipe_file(again / upload.TRIAL, b"")
    upload.look(again, force=False)
    upload.upload(shards, again)
    assert verify(again) == {"train": 13, "val": 5}  # what was left of the upload before is gone
    for name in (upload.TRIAL, ""):  # left by one who may not remove, and made by a bucket's web page
        there.pipe_file(f"s3://{s3.BUCKET}/new/{name}", b"")
        upload.look(Address(f"s3://{s3.BUCKET}/new"), force=False)
    fewer = tmp_path / "fewer"
    shutil.copytree(shards, fewer)
    manifest = json.loads((fewer / "manifest.json").read_text())
    manifest["splits"].pop("val")
    (fewer / "manifest.json").write_text(json.dumps(manifest))
    for file in fewer.glob("val-*"):
        file.unlink()
    upload.look(again, force=True)
    upload.upload(fewer, again)
    assert verify(again) == {"train": 13}
    names = Remote(again).names()
    assert names is not None
    assert not [name for name in names if name.startswith("val-")]
