"""One split of packed shards, read by index."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dist_sketch.core.errors import UserError
from dist_sketch.data import local_copy, pixels
from dist_sketch.data.manifest import read_manifest


class Sample(NamedTuple):
    """A line drawing and its sketch, if it has one: uint8 (C, H, W) each."""

    name: str
    line: Tensor
    sketch: Tensor | None
    source_size: tuple[int, int]  # (width, height) of the line's file


class BadSample(UserError):
    """A sample whose bytes are not what the manifest says."""


class Shards:
    """One split of a folder of shards, read by index. The index is in arrays, whose memory forked workers share.

    Raises:
        UserError: the folder has no readable manifest, or no such split.
    """

    def __init__(self, folder: Path, split: str):
        manifest = read_manifest(folder)
        if split not in manifest["splits"]:
            raise UserError(f"{folder}: has no split {split!r}; it has {', '.join(manifest['splits'])}")
        part = manifest["splits"][split]
        self.folder, self.split = local_copy.nearest(folder), split
        self.size: int = manifest["size"]
        self.paired: dict[str, bool] = {name: p["has_sketch"] for name, p in manifest["splits"].items()}
        self.has_sketch = self.paired[split]
        self.files = [s["file"] for s in part["shards"]]
        index = part["index"]
        self.keys = np.array(index["key"])
        self.shard_numbers = np.array(index["shard"], dtype=np.int32)
        self.offsets = np.array(index["offset"], dtype=np.int64)
        self.lengths = np.array(index["length"], dtype=np.int64)
        self.hashes = np.frombuffer(bytes.fromhex("".join(index["sha256"])), dtype=np.uint8).reshape(-1, 32)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, i: int, channels: int) -> Sample:
        """Reads sample `i`, in the manifest's order, with one `pread`.

        Raises:
            BadSample: the shard is missing or short, the hash is wrong, or the members are not one pair.
        """
        key, file = str(self.keys[i]), self.folder / self.files[self.shard_numbers[i]]
        try:
            with open(file, "rb", buffering=0) as f:
                block = os.pread(f.fileno(), int(self.lengths[i]), int(self.offsets[i]))
        except OSError as e:
            raise BadSample(f"{file}: cannot be read at sample {key!r} ({e.strerror})") from e
        if hashlib.sha256(block).digest() != self.hashes[i].tobytes():
            raise BadSample(
                f"{file}: sample {key!r} is not what the manifest says (length or hash); pack the shards again, "
                "or allow some samples to be left out with --data.skip-bad N"
            )
        with tarfile.open(fileobj=io.BytesIO(block)) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
        expected = [f"{key}.json", f"{key}.line.png"] + [f"{key}.sketch.png"] * self.has_sketch
        if sorted(members) != expected:
            raise BadSample(f"{file}: sample {key!r} holds {', '.join(members)}: the manifest belongs to other shards")
        about = json.loads(members[f"{key}.json"])
        if "/" in about["name"] or about["name"] in ("", ".", ".."):  # output files get this name
            raise BadSample(f"{file}: sample {key!r} has the name {about['name']!r}, which leaves its folder")
        line = pixels.decode(members[f"{key}.line.png"], channels)
        sketch = pixels.decode(members[f"{key}.sketch.png"], channels) if self.has_sketch else None
        return Sample(about["name"], line, sketch, (about["line"]["width"], about["line"]["height"]))
