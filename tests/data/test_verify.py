"""`verify` goes on where it was stopped, and says what it does in bytes."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from dist_sketch.core.errors import UserError
from dist_sketch.data import node_cache, verify
from dist_sketch.data.pack import pack


class Stopped(Exception):
    """Stands for Ctrl-C."""


@pytest.fixture
def own(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shards, of which each one that is found good is noted at once."""
    monkeypatch.setattr(verify, "NOTED_AFTER_S", 0.0)
    monkeypatch.setenv(node_cache.VARIABLE, str(tmp_path / "cache"))
    shutil.copytree(shards, tmp_path / "shards")
    return tmp_path / "shards"


def looked_at(shards: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str = "") -> list[str]:
    """The shards that a verification reads; it is interrupted at `stop_at`."""
    read, look = [], verify._verify_shard

    def looking(place: Any, job: Any, *more: Any) -> list[str]:
        if job.shard["file"] == stop_at:
            time.sleep(0.2)  # so that the shards before it are done
            raise Stopped
        read.append(job.shard["file"])
        return look(place, job, *more)

    with monkeypatch.context() as patch:
        patch.setattr(verify, "_verify_shard", looking)
        if stop_at:
            with pytest.raises(Stopped):
                verify.verify(shards)
        else:
            assert verify.verify(shards) == {"train": 13, "val": 5}
    return sorted(read)


def notes(folder: Path) -> list[Path]:
    return list(folder.glob(".verify-*"))


ALL = ["train-000000.tar", "train-000001.tar", "train-000002.tar", "val-000000.tar"]


def test_it_goes_on_where_it_was_stopped(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked_at(own, monkeypatch, "train-000002.tar")[:2] == ALL[:2]
    (note,) = notes(own)
    note.write_text(note.read_text() + "train-000002.tar 12")  # the end of a line that a kill has cut
    os.utime(own / "train-000001.tar")  # somebody may have written to it
    assert set(looked_at(own, monkeypatch)) >= {"train-000001.tar", "train-000002.tar"}
    assert "train-000000.tar" not in looked_at_after_stop(own, monkeypatch)
    assert notes(own) == []
    assert looked_at(own, monkeypatch) == ALL


def looked_at_after_stop(own: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    looked_at(own, monkeypatch, "train-000002.tar")
    return looked_at(own, monkeypatch)


def test_a_note_is_of_these_shards_and_of_today(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at(own, monkeypatch, "train-000002.tar")
    (note,) = notes(own)
    os.utime(note, (time.time() - 2 * verify.VALID_S,) * 2)
    assert looked_at(own, monkeypatch) == ALL
    looked_at(own, monkeypatch, "train-000002.tar")
    manifest = own / "manifest.json"
    manifest.write_text(manifest.read_text().replace("not stated", "not known"))
    assert looked_at(own, monkeypatch) == ALL


def test_a_note_is_of_this_place_and_this_user(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at(own, monkeypatch, "train-000002.tar")
    copy = shutil.copytree(own, tmp_path / "copy")  # copies the times and the note, too
    assert looked_at(copy, monkeypatch) == ALL
    (note,) = notes(own)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: note.stat().st_uid + 1)
        assert looked_at(own, monkeypatch) == ALL


def test_a_note_does_not_hide_damage(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at(own, monkeypatch, "train-000002.tar")
    shard = own / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"train-000000.tar: key 1: its bytes have another SHA-256"):
        verify.verify(own)


def test_a_folder_that_cannot_be_written(own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    looked_at(own, monkeypatch, "train-000002.tar")
    assert notes(own) == []
    assert len(notes(tmp_path / "cache")) == 1
    assert set(looked_at(own, monkeypatch)) == {"train-000002.tar", "val-000000.tar"} | set(ALL[2:])
    assert notes(tmp_path / "cache") == []


def test_pack_force_replaces_shards_with_a_note(own: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dist_sketch.data import recipe

    looked_at(own, monkeypatch, "train-000002.tar")
    assert len(notes(own)) == 1
    pack(recipe.load(str(pairs)), own, size=64, shard_count=5, workers=1, force=True)
    assert notes(own) == []
