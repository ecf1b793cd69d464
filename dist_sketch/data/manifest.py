"""manifest.json of a folder of shards: where each sample lies, and the hashes of all bytes."""

import re
from pathlib import Path
from typing import Any

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json, sha256

FORMAT = 1
MANIFEST = "manifest.json"
COLUMNS = {"key": str, "shard": int, "offset": int, "length": int, "sha256": str}  # of a split's index


def read_manifest(shards: Path) -> dict[str, Any]:
    """Reads `shards`/manifest.json.

    Raises:
        UserError: it is missing, damaged, or of another format version.
    """
    path = shards / MANIFEST
    if not shards.is_dir():
        raise UserError(f"{shards}: there is no such folder; make it with: dist-sketch pack SOURCE --out {shards}")
    if not path.is_file():
        raise UserError(f"{path}: is missing: {shards} is not a folder of packed shards (dist-sketch pack makes one)")
    manifest = read_json(path)
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version != FORMAT:
        raise UserError(f"{path}: has format {version}, but this version reads {FORMAT}: pack the images again")
    try:
        good = version == FORMAT and manifest["size"] > 0 and len(manifest["splits"]) > 0
        good = good and all(_consistent(split) for split in manifest["splits"].values())
    except (KeyError, TypeError, AttributeError, IndexError):
        good = False
    if not good:
        raise UserError(f"{path}: is damaged (parts are missing or contradict each other): pack the images again")
    return dict(manifest)


def _consistent(split: dict[str, Any]) -> bool:
    """Whether columns have equal lengths and the right types, and samples lie back to back in plainly named shards."""
    index, shards, count = split["index"], split["shards"], split["count"]
    for name, kind in COLUMNS.items():
        if len(index[name]) != count or not all(type(value) is kind for value in index[name]):
            return False
    if len(set(index["key"])) != count or not isinstance(split["has_sketch"], bool):
        return False
    if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in index["sha256"]):
        return False
    ends, counts = [0] * len(shards), [0] * len(shards)
    for shard, offset, length in zip(index["shard"], index["offset"], index["length"], strict=True):
        if shard < 0 or offset != ends[shard] or length <= 0:
            return False
        ends[shard] += length
        counts[shard] += 1
    return all(
        s["file"] == Path(s["file"]).name and n == s["count"] and end <= s["bytes"]
        for s, n, end in zip(shards, counts, ends, strict=True)
    )


def manifest_hash(shards: Path) -> str:
    """SHA-256 (hex) of manifest.json, which contains the hashes of all shards and so identifies the whole data set.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return sha256(shards / MANIFEST)
    except OSError as e:
        raise UserError(f"{shards / MANIFEST}: cannot be read ({e.strerror})") from e
