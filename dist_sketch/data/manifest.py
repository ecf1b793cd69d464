"""manifest.json of a shards folder: where each sample lies, and the hashes of everything."""

import hashlib
import re
from pathlib import Path
from typing import Any

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json

FORMAT = 1


MANIFEST = "manifest.json"


COLUMNS = {"key": str, "shard": int, "offset": int, "length": int, "sha256": str}


def read_manifest(shards: Path) -> dict[str, Any]:
    """Reads `shards`/manifest.json.

    Raises:
        UserError: it is missing, damaged, or of another format version.
    """
    path = shards / MANIFEST
    if not shards.is_dir():
        raise UserError(f"{shards}: there is no such folder; make it with: dist-sketch pack SOURCE --out {shards}")
    if not path.is_file():
        raise UserError(f"{path}: is missing: {shards} is no folder of packed shards (dist-sketch pack makes one)")
    manifest = read_json(path)
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version != FORMAT:
        raise UserError(f"{path}: is of format {version}, this version reads {FORMAT}: pack the images again")
    try:
        good = version == FORMAT and manifest["size"] > 0 and len(manifest["splits"]) > 0
        good = good and all(_consistent(split) for split in manifest["splits"].values())
    except (KeyError, TypeError, AttributeError, IndexError):
        good = False
    if not good:
        raise UserError(f"{path}: is damaged (its parts are missing or contradict each other): pack the images again")
    return dict(manifest)


def _consistent(split: dict[str, Any]) -> bool:
    """Columns of equal length and right types, shards named plainly, samples back to back in them."""
    index, shards, count = split["index"], split["shards"], split["count"]
    columns_hold = all(
        len(index[name]) == count and all(type(v) is kind for v in index[name]) for name, kind in COLUMNS.items()
    )
    if not columns_hold or len(set(index["key"])) != count or not isinstance(split["has_sketch"], bool):
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
    """SHA-256 (hex) of manifest.json's bytes, which pins every byte of the shards.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return hashlib.sha256((shards / MANIFEST).read_bytes()).hexdigest()
    except OSError as e:
        raise UserError(f"{shards / MANIFEST}: cannot be read ({e.strerror})") from e
