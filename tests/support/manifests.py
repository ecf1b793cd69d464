"""Manifests whose index says what a test wants, with right hashes."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dist_sketch.data.index import to_bytes
from dist_sketch.data.manifest import read_index, read_manifest

Columns = dict[str, list[Any]]  # "key", "length" and "sha256" of each sample


def put_index(folder: Path, keys: Sequence[str], lengths: Sequence[int], hashes: Sequence[str]) -> dict[str, Any]:
    """Writes the index of the training split; returns its entry in the manifest."""
    data, name = to_bytes(keys, lengths, map(bytes.fromhex, hashes)), "train-index.safetensors"
    (folder / name).write_bytes(data)
    return {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def change_training(folder: Path, change: Callable[[Columns, list[dict[str, Any]]], None]) -> None:
    """Lets `change` edit the columns of the training split's index, and the list of its shards."""
    manifest = read_manifest(folder)
    keys, _, _, lengths, hashes = map(list, zip(*read_index(folder, manifest, "train").rows(), strict=True))
    columns, part = {"key": keys, "length": lengths, "sha256": hashes}, manifest["splits"]["train"]
    change(columns, part["shards"])
    part["index"] = put_index(folder, *columns.values())
    (folder / "manifest.json").write_text(json.dumps(manifest))
