"""Shards of a million pairs for the bench: a whole index and files of the right lengths, with a few real samples."""

import io
import json
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from dist_sketch.core.fileio import write_json
from dist_sketch.data import shard_writer
from dist_sketch.data.manifest import FORMAT, MANIFEST

A_SHARD = 20_000  # samples
SIZE = 64


def write(folder: Path, count: int, real: Collection[int] = ()) -> None:
    """Writes shards of `count` pairs into a new folder.

    Args:
        real: the pairs that can be read. The others' bytes are holes in the files, which take no place on the disk.
    """
    folder.mkdir()
    length = len(_block(0))
    shards: dict[str, shard_writer.Sizes] = {}
    for number, first in enumerate(range(0, count, A_SHARD)):
        name, own = f"train-{number:06d}.tar", range(first, min(first + A_SHARD, count))
        shards[name] = [(_key(i), length) for i in own]
        with open(folder / name, "xb") as file:
            for i in own if len(real) == count else (i for i in real if i in own):
                file.seek((i - first) * length)
                file.write(_block(i))
            os.truncate(file.fileno(), len(own) * length)
    splits = {"train": shard_writer.describe(folder, "train", shards, has_sketch=True, labels={})}
    about = {"format": FORMAT, "size": SIZE, "recipe": "bench", "license": "none", "settings": {}, "skipped": []}
    write_json(folder / MANIFEST, {**about, "splits": splits})


def _key(i: int) -> str:
    return f"{i:07d}"


def _block(i: int) -> bytes:
    """A sample of blank pictures."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIZE, SIZE), 255, np.uint8)).save(buffer, "PNG")
    side = {"width": SIZE, "height": SIZE}
    about = json.dumps({"name": _key(i), "line": side, "sketch": side}).encode()
    members = {"json": about, "line.png": buffer.getvalue(), "sketch.png": buffer.getvalue()}
    return shard_writer.block_of(_key(i), members)
