"""Shards on a node's own disk: the loader finds the copy, and nothing of it remains."""

from pathlib import Path
from typing import BinaryIO

import pytest

from dist_sketch.core.errors import UserError
from dist_sketch.data import local_copy
from dist_sketch.data.manifest import files_of, read_manifest
from dist_sketch.data.shards import Shards


def test_the_loader_reads_the_copy(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    (copy / "left").mkdir(parents=True)  # by a job that was killed
    assert local_copy.nearest(shards) == shards
    with local_copy.staged(shards, copy) as variables:
        assert {p.name for p in copy.iterdir()} == set(files_of(read_manifest(shards)))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(shards.parent)
        for named in (shards, Path(shards.name)):  # absolute and relative
            assert local_copy.nearest(named) == copy
            assert Shards(named, "train").folder == copy
        assert local_copy.nearest(tmp_path) == tmp_path
        for tar in copy.glob("*.tar"):
            tar.unlink()
        with pytest.raises(UserError, match="copy"):
            [Shards(shards, split).read(i, 3) for split in ("train", "val") for i in range(5)]
    assert not copy.exists()


def test_each_node_has_its_own(tmp_path: Path) -> None:
    env = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "1", "TMPDIR": "/scratch"}
    assert local_copy.home(env) == Path("/scratch/dist-sketch-7-1")
    assert local_copy.home(env | {"SLURM_TMPDIR": "/local"}) == Path("/local/dist-sketch-7-1")


def test_only_what_the_manifest_names_is_copied(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for file in shards.iterdir():
        (folder / file.name).symlink_to(file)  # links are followed
    (folder / "endless").symlink_to("/dev/zero")
    with local_copy.staged(folder, tmp_path / "copy"):
        assert {p.name for p in (tmp_path / "copy").iterdir()} == set(files_of(read_manifest(shards)))
    shard = next(folder.glob("*.tar"))
    shard.unlink()
    shard.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="it is not a regular file"), local_copy.staged(folder, tmp_path / "copy"):
        pass


def test_mistakes(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot be read"), local_copy.staged(tmp_path / "no", tmp_path / "copy"):
        pass
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot be copied to .*; without a copy: stage=0"):
        with local_copy.staged(shards, tmp_path / "file" / "copy"):
            pass

    def damaged(source: BinaryIO, target: BinaryIO, _: int) -> None:
        data = source.read()
        target.write(data[:-1000] if target.name.endswith(".tar") else data)

    monkeypatch.setattr(local_copy.shutil, "copyfileobj", damaged)
    with pytest.raises(UserError, match="differ from the manifest"), local_copy.staged(shards, tmp_path / "copy"):
        pass
    assert not (tmp_path / "copy").exists()
