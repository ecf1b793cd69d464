"""Packed shards as a data set of the Hub: a stand-in on this machine takes them, and gives parts of their files."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from support.hub_server import TOKEN, serving

from dist_sketch.__main__ import parse
from dist_sketch.core.errors import UserError
from dist_sketch.core.places import Address
from dist_sketch.data import node_cache
from dist_sketch.data.shards import BadSample, Shards
from dist_sketch.data.verify import verify
from dist_sketch.sharing import hub_dataset

Files = dict[str, bytes]


class Hub:
    """Data sets in memory, by name; how many commits each has; and the requests for parts of files."""

    def __init__(self) -> None:
        self.sets: dict[str, Files] = {}
        self.commits: dict[str, int] = {}
        self.ranges: list[str] = []

    def answer(self, method: str, path: str, token: str, asked: str, body: bytes) -> tuple[int, Any]:
        """Status, and a JSON value, or a file's bytes."""
        path = path.partition("?")[0]
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            data = self.sets.get(found[1], {}).get(found[2])
            if data is None:
                return 404, "EntryNotFound"
            if part := re.fullmatch(r"bytes=(\d+)-(\d+)", asked):
                self.ranges.append(found[2])
                return 206, data[int(part[1]) : int(part[2]) + 1]
            return 200, data
        if method == "GET" and (found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/.*)?", path)):
            if (files := self.sets.get(found[1])) is None:
                return 404, "RepoNotFound"
            if (found[2] or "").startswith("/tree"):
                return 200, [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
            return 200, {"id": found[1], "sha": "0" * 40, "siblings": [{"rfilename": name} for name in files]}
        if token != f"Bearer {TOKEN}":
            return 401, "Invalid username or password."
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user", "orgs": []}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.sets.setdefault(name, {".gitattributes": b""})
            return 200, {"url": f"{constants.ENDPOINT}/datasets/{name}"}
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/(preupload|commit)/main", path):
            if found[2] == "preupload":
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                return 200, {"files": [{"path": f["path"], **modes} for f in json.loads(body)["files"]]}
            files = self.sets[found[1]]
            self.commits[found[1]] = self.commits.get(found[1], 0) + 1
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            return 200, {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": f"{constants.ENDPOINT}/datasets/{found[1]}/commit/1",
            }
        return 501, f"the stand-in does not know {method} {path}"

    def commit_of(self, path: str) -> str:
        return "0" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    stand_in = Hub()

    monkeypatch.setenv(node_cache.VARIABLE, str(tmp_path / "samples"))
    with serving(stand_in, tmp_path, monkeypatch):
        yield stand_in


def test_shards_go_to_the_hub_and_come_back(
    hub: Hub, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, name, address = tmp_path / "shards", "me/faces", Address("hf://datasets/me/faces")
    pack = ["pack", str(pairs), "--out", str(shards), "--size", "64", "--workers", "1", "--push", name]
    assert parse([*pack, "--shard-count", "5"])() == 0
    assert f"/datasets/{name}" in capsys.readouterr().out
    assert hub.commits == {name: 1}
    assert {k: v for k, v in hub.sets[name].items() if k != ".gitattributes"} == {
        file.name: file.read_bytes() for file in shards.iterdir()
    }

    there, here = Shards(address, "train"), Shards(shards, "train")
    hub.ranges.clear()
    for (_, one), (_, other) in zip(there.stream(range(13), 3), here.stream(range(13), 3), strict=True):
        assert not isinstance(one, BadSample)
        assert not isinstance(other, BadSample)
        assert torch.equal(one.line, other.line)
    assert sorted(hub.ranges) == here.files  # one request a shard
    assert verify(address) == {"train": 13, "val": 5}

    assert parse([*pack, "--shard-count", "20", "--force"])() == 0
    assert hub.commits == {name: 2}
    assert "train-000001.tar" not in hub.sets[name]  # of the shards before


def test_what_is_not_ours_stays(hub: Hub, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.sets["me/photos"] = {"photo.jpg": b"", "README.md": b""}
    with pytest.raises(UserError, match=r"me/photos: the Hub has such a data set already, which holds other files"):
        hub_dataset.push(shards, "me/photos")
    with pytest.raises(UserError, match=r"you/faces: me, who is logged in, can upload to me/"):
        hub_dataset.push(shards, "you/faces")
    with pytest.raises(UserError, match="the name of a data set is user/name"):
        hub_dataset.push(shards, "faces")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="me/faces: cannot be uploaded"):
        hub_dataset.push(shards, "me/faces")
    assert hub.commits == {}


def test_a_data_set_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"hf://datasets/me/nothing/manifest.json"):
        Shards(Address("hf://datasets/me/nothing"), "train")
