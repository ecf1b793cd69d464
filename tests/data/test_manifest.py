"""A manifest that others wrote: it is right, or one sentence says what is wrong with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_sketch.core.errors import UserError
from dist_sketch.data.manifest import read_manifest

OLD = Path(__file__).parents[1] / "old_files/shards/manifest.json"
RIGHT = json.loads(OLD.read_text(encoding="utf-8"))
VALUES = [None, True, -1, 0, 1, 10**6, 2**63, 1.5, "..", "a/b", "", "x" * 300, [], {}, [[]]]


def read(folder: Path, manifest: Any) -> dict[str, Any]:
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return read_manifest(folder)


def changed(change: Callable[[Any], Any]) -> Any:
    """The right manifest after a change of its training split."""
    manifest = json.loads(json.dumps(RIGHT))
    change(manifest["splits"]["train"])
    return manifest


def test_what_an_older_version_packed_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, RIGHT) == RIGHT


@pytest.mark.parametrize("key", ["format", "size", "recipe", "license", "settings", "skipped", "splits"])
def test_each_key_is_needed_and_has_its_type(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json"):
        read(tmp_path, {k: v for k, v in RIGHT.items() if k != key})
    right = type(RIGHT[key])
    for value in VALUES:
        if type(value) is not right:
            with pytest.raises(UserError, match=r"manifest\.json: "):
                read(tmp_path, RIGHT | {key: value})


@pytest.mark.parametrize("value", [0, -64, 65, 32, 10**9, 4096])
def test_the_size_is_one_that_networks_take(value: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"size = .*must be a multiple of 64 from 64 to 2048"):
        read(tmp_path, RIGHT | {"size": value})


CHANGES: dict[str, Callable[[Any], Any]] = {
    "count too high": lambda s: s.update(count=99),
    "no samples": lambda s: s.update(count=0),
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
    "columns missing": lambda s: s.update(index={}),
    "no shards": lambda s: s.update(shards=[]),
    "a shard elsewhere": lambda s: s["shards"][0].update(file="../x.tar"),
    "an absolute shard": lambda s: s["shards"][0].update(file="/x.tar"),
    "the other split's shard": lambda s: s["shards"][0].update(file=RIGHT["splits"]["val"]["shards"][0]["file"]),
    "shard is short": lambda s: s["shards"][0].update(bytes=10),
    "shard has other count": lambda s: s["shards"][0].update(count=1),
    "sketch is no yes or no": lambda s: s.update(has_sketch=1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_parts_that_contradict_each_other_are_a_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^\S+manifest\.json.*pack the images again"):
        read(tmp_path, changed(CHANGES[name]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(value=JSON, where=st.lists(st.sampled_from(["splits", "train", "index", "shards", "key", "size"]), max_size=4))
def test_anything_is_a_sentence_or_right(
    value: Any, where: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "manifest"
    folder.mkdir(exist_ok=True)
    manifest = at = json.loads(json.dumps(RIGHT))
    for key in where:
        if isinstance(at.get(key), dict):
            at = at[key]
    at[where[-1] if where else "size"] = value
    for content in (manifest, value):
        said = str(folder)
        try:
            assert read(folder, content)["format"] == 1
        except UserError as e:
            said = str(e)
        assert said.startswith(str(folder))
