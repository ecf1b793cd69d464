"""A manifest and its index that others wrote: they are right, or one sentence says what is wrong with them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from dist_sketch.core.errors import UserError
from dist_sketch.data.index import Keys, to_bytes
from dist_sketch.data.manifest import files_of, read_index, read_labels, read_manifest

OLD = Path(__file__).parents[1] / "old_files/shards/manifest.json"
OLD_ONE = json.loads(OLD.read_text(encoding="utf-8"))
VALUES = [None, True, -1, 0, 1, 10**6, 2**63, 1.5, "..", "a/b", "", "x" * 300, [], {}, [[]]]


def new_one(folder: Path, old: Any = OLD_ONE) -> Any:
    """The same in format 2, with the files of its index and labels."""
    splits = {}
    for name, split in old["splits"].items():
        columns, labels = split["index"], {"style": [1] * split["count"]}
        index = to_bytes(columns["key"], columns["length"], map(bytes.fromhex, columns["sha256"]))
        files = {"index": (f"{name}-index.safetensors", index), "labels": (f"{name}-labels.json", json.dumps(labels))}
        splits[name] = {**split, **{kind: put(folder, file, data) for kind, (file, data) in files.items()}}
    return {**old, "format": 2, "splits": splits}


def put(folder: Path, name: str, data: bytes | str) -> dict[str, Any]:
    data = data.encode() if isinstance(data, str) else data
    (folder / name).write_bytes(data)
    return {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def read(folder: Path, manifest: Any) -> dict[str, Any]:
    """Reads all of it."""
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = read_manifest(folder)
    for split in found["splits"]:
        read_index(folder, found, split)
        read_labels(folder, found, split)
    return found


def changed(manifest: Any, change: Callable[[Any], Any]) -> Any:
    """The right manifest after a change of its training split."""
    manifest = json.loads(json.dumps(manifest))
    change(manifest["splits"]["train"])
    return manifest


def test_what_an_older_version_packed_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, OLD_ONE) == OLD_ONE
    old = read_index(tmp_path, OLD_ONE, "train")
    manifest = new_one(tmp_path)
    assert read(tmp_path, manifest) == manifest
    assert list(old.rows()) == list(read_index(tmp_path, manifest, "train").rows())
    columns = OLD_ONE["splits"]["train"]["index"]
    assert list(old.rows()) == list(zip(*columns.values(), strict=True))
    assert read_labels(tmp_path, manifest, "train") == {"style": [1] * len(old)}
    names = [
        f"{split}-{what}" for split in ("train", "val") for what in ("000000.tar", "index.safetensors", "labels.json")
    ]
    assert sorted(files_of(manifest)) == ["manifest.json", *names]


@pytest.mark.parametrize("key", ["format", "size", "recipe", "license", "settings", "skipped", "splits"])
def test_each_key_is_needed_and_has_its_type(key: str, tmp_path: Path) -> None:
    for right in (OLD_ONE, new_one(tmp_path)):
        with pytest.raises(UserError, match=r"manifest\.json"):
            read(tmp_path, {k: v for k, v in right.items() if k != key})
        for value in VALUES:
            if type(value) is not type(right[key]):
                with pytest.raises(UserError, match=r"manifest\.json: "):
                    read(tmp_path, right | {key: value})


@pytest.mark.parametrize("value", [0, -64, 65, 32, 10**9, 4096])
def test_the_size_is_one_that_networks_take(value: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"size = .*must be a multiple of 64 from 64 to 2048"):
        read(tmp_path, new_one(tmp_path) | {"size": value})


OF_BOTH: dict[str, Callable[[Any], Any]] = {
    "count too high": lambda s: s.update(count=99),
    "no samples": lambda s: s.update(count=0),
    "columns missing": lambda s: s.update(index={}),
    "no shards": lambda s: s.update(shards=[]),
    "a shard elsewhere": lambda s: s["shards"][0].update(file="../x.tar"),
    "an absolute shard": lambda s: s["shards"][0].update(file="/x.tar"),
    "the other split's shard": lambda s: s["shards"][0].update(file=OLD_ONE["splits"]["val"]["shards"][0]["file"]),
    "shard is short": lambda s: s["shards"][0].update(bytes=10),
    "shard has other count": lambda s: s["shards"][0].update(count=1),
    "shard is empty": lambda s: s["shards"].append(s["shards"][0] | {"file": "x.tar", "count": 0}),
    "sketch is no yes or no": lambda s: s.update(has_sketch=1),
}
OF_OLD: dict[str, Callable[[Any], Any]] = {
    "a column is short": lambda s: s["index"]["key"].pop(),
    "a key twice": lambda s: s["index"]["key"].__setitem__(0, s["index"]["key"][1]),
    "a key leaves the folder": lambda s: s["index"]["key"].__setitem__(0, "../a"),
    "a key without end": lambda s: s["index"]["key"].__setitem__(0, "a" * 1000),
    "no such shard": lambda s: s["index"]["shard"].__setitem__(0, 99),
    "shard below 0": lambda s: s["index"]["shard"].__setitem__(0, -1),
    "shard is true": lambda s: s["index"]["shard"].__setitem__(0, False),
    "a gap": lambda s: s["index"]["offset"].__setitem__(1, s["index"]["offset"][1] + 1),
    "offset below 0": lambda s: s["index"]["offset"].__setitem__(0, -1),
    "an empty sample": lambda s: s["index"]["length"].__setitem__(0, 0),
    "a sample of terabytes": lambda s: s["index"]["length"].__setitem__(0, 2**62),
    "length is a float": lambda s: s["index"]["length"].__setitem__(0, 1.0),
    "no hash": lambda s: s["index"]["sha256"].__setitem__(0, "0" * 63),
    "hash in capitals": lambda s: s["index"]["sha256"].__setitem__(0, "A" * 64),
}
OF_NEW: dict[str, Callable[[Any], Any]] = {
    "an index elsewhere": lambda s: s["index"].update(file="../x"),
    "an index without hash": lambda s: s["index"].pop("sha256"),
    "no index": lambda s: s.pop("index"),
    "labels elsewhere": lambda s: s["labels"].update(file="/etc/passwd"),
    "a file twice": lambda s: s["labels"].update(file=s["index"]["file"]),
    "the manifest itself": lambda s: s["index"].update(file="manifest.json"),
}


@pytest.mark.parametrize("name", [*OF_BOTH, *OF_OLD])
def test_parts_of_an_old_manifest_that_contradict_each_other_are_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^\S+manifest\.json.*pack the images again"):
        read(tmp_path, changed(OLD_ONE, (OF_BOTH | OF_OLD)[name]))


@pytest.mark.parametrize("name", [*OF_BOTH, *OF_NEW])
def test_parts_that_contradict_each_other_are_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^\S+(manifest\.json|train-index\.safetensors).*pack the images again"):
        read(tmp_path, changed(new_one(tmp_path), (OF_BOTH | OF_NEW)[name]))


def indexed(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """What makes the contents of an index's file of those of the right one, by a change of its arrays."""

    def make(data: bytes) -> bytes:
        arrays = {name: array.copy() for name, array in load(data).items()}
        change(arrays)
        return save(arrays)

    return make


def lengths(value: int) -> Callable[[bytes], bytes]:
    return indexed(lambda a: a["length"].__setitem__(0, value))


def keys(text: bytes) -> Callable[[bytes], bytes]:
    """With these keys of the four pairs."""
    return indexed(lambda a: a.update(key=np.frombuffer(text, np.uint8)))


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "junk": lambda _: b"junk" * 100,
    "JSON": lambda _: b"{}",
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "a header without end": lambda data: (2**62).to_bytes(8, "little") + data[8:],
    "no keys": indexed(lambda a: a.pop("key")),
    "lengths of another type": indexed(lambda a: a.update(length=a["length"].astype(np.float64))),
    "lengths in a table": indexed(lambda a: a.update(length=a["length"].reshape(2, 2))),
    "too few lengths": indexed(lambda a: a.update(length=a["length"][:3])),
    "short hashes": indexed(lambda a: a.update(sha256=a["sha256"][:, :31].copy())),
    "keys in a table": indexed(lambda a: a.update(key=a["key"].reshape(-1, 1))),
    "an empty sample": lengths(0),
    "a length below 0": lengths(-1),
    "a length that overflows": lengths(2**62),
    "a sample longer than its shard": lengths(10**9),
    "too few keys": keys(b"1\x002\x003\0"),
    "a last key without its end": keys(b"1\x002\x003\x004"),
    "a key twice": keys(b"1\x001\x003\x004\0"),
    "an empty key": keys(b"\x002\x003\x004\0"),
    "an empty key inside": keys(b"1\0\x003\x004\0"),
    "a key is dots": keys(b"..\x002\x003\x004\0"),
    "a key is a dot": keys(b"1\x00.\x003\x004\0"),
    "a key leaves the folder": keys(b"../a\x002\x003\x004\0"),
    "a key without end": keys(b"1\x00" + b"a" * 1000 + b"\x003\x004\0"),
    "a key is not UTF-8": keys(b"1\x00\xff\x003\x004\0"),
    "half a character": keys(b"1\x00\xed\xa0\x80\x003\x004\0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_with_the_right_hash_may_still_be_hostile(name: str, tmp_path: Path) -> None:
    manifest = new_one(tmp_path)
    assert manifest["splits"]["train"]["count"] == 4
    data = HOSTILE[name]((tmp_path / "train-index.safetensors").read_bytes())
    manifest["splits"]["train"]["index"] = put(tmp_path, "train-index.safetensors", data)
    with pytest.raises(UserError, match=r"^\S+train-index\.safetensors: .*damaged: pack the images again$") as error:
        read(tmp_path, manifest)
    assert len(str(error.value)) < 500


def test_the_hash_and_the_files_themselves_are_looked_at(tmp_path: Path) -> None:
    manifest = new_one(tmp_path)
    for name in ("train-index.safetensors", "val-labels.json"):
        right = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(right.replace(b"1", b"2"))
        with pytest.raises(
            UserError, match=rf"{name}: has another SHA-256 than the manifest says; the file is damaged"
        ):
            read(tmp_path, manifest)
        (tmp_path / name).unlink()
        with pytest.raises(UserError, match=rf"{name}: cannot be read \(No such file or directory\)"):
            read(tmp_path, manifest)
        (tmp_path / name).write_bytes(right)
    assert read(tmp_path, manifest) == manifest


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "{",
        '{"style": [1]}',
        '{"style": 1}',
        '{"style": [1, 2, 3, [4]]}',
        json.dumps({"style": [1, 2, 3, "x" * 101]}),
        '{"": []}',
    ],
)
def test_labels_that_are_none_are_a_sentence(text: str, tmp_path: Path) -> None:
    manifest = new_one(tmp_path)
    manifest["splits"]["train"]["labels"] = put(tmp_path, "train-labels.json", text)
    with pytest.raises(UserError, match=r"^\S+train-labels\.json: .*damaged: pack the images again$"):
        read(tmp_path, manifest)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)))
def test_keys_are_read_like_a_list(texts: list[str]) -> None:
    found = Keys("".join(f"{text}\0" for text in texts).encode())
    assert list(found) == texts
    assert [found[i] for i in range(len(found))] == texts
    assert [found[i] for i in range(-len(texts), 0)] == texts
    for i in (len(texts), -len(texts) - 1):
        with pytest.raises(IndexError):
            found[i]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(
    value=JSON,
    where=st.lists(st.sampled_from(["splits", "train", "index", "shards", "key", "size", "file"]), max_size=4),
    old=st.booleans(),
)
def test_anything_is_a_sentence_or_right(
    value: Any, where: list[str], old: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "manifest"
    folder.mkdir(exist_ok=True)
    manifest = at = json.loads(json.dumps(OLD_ONE if old else new_one(folder)))
    for key in where:
        if isinstance(at.get(key), dict):
            at = at[key]
    at[where[-1] if where else "size"] = value
    for content in (manifest, value):
        said = str(folder)
        try:
            assert read(folder, content)["format"] in (1, 2)
        except UserError as e:
            said = str(e)
        assert said.startswith(str(folder))
