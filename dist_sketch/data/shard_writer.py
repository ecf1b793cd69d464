"""Writes samples into the tar files of one split, the same bytes for the same samples, and describes them."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dist_sketch.core.fileio import open_regular, write_atomic
from dist_sketch.core.folders import sync
from dist_sketch.data.hashes import hashes_in
from dist_sketch.data.index import to_bytes
from dist_sketch.data.manifest import File

Block = tuple[str, bytes]  # a sample's key, and its members as they stand in a tar
Sizes = list[tuple[str, int]]  # keys and lengths of the samples in a shard, in order


def block_of(key: str, members: Mapping[str, bytes]) -> bytes:
    """A sample's members as WebDataset wants them in a tar: KEY.ENDING for each ending, in the order of the endings.

    What stands in a tar does not depend on its place there, so that samples can be made apart and joined later.
    """
    # Imported here, because it imports torch, which processes that only prepare pictures do not need.
    from webdataset import TarWriter

    buffer = io.BytesIO()
    # Fixed owner and time make the bytes reproducible; PAX allows long and non-ASCII names.
    about = {"user": "dist_sketch", "group": "dist_sketch", "mtime": 0, "format": "PAX_FORMAT"}
    with TarWriter(buffer, encoder=False, **about) as tar:
        tar.write({"__key__": key, **members})
        end = tar.tarstream.offset
    return buffer.getvalue()[:end]


def write(blocks: Iterable[Block], folder: Path, split: str, limit: float, count: int) -> dict[str, Sizes]:
    """Writes the split's shards; returns what each file holds.

    Args:
        limit: of a shard, bytes.
        count: of a shard, samples; 0: no limit.
    """
    shards: dict[str, Sizes] = {}
    samples: Sizes = []
    end = 0
    with ExitStack() as open_shard:
        for key, block in blocks:
            if not shards or len(samples) == count > 0 or end + len(block) + tarfile.RECORDSIZE > limit:
                open_shard.close()
                name, samples, end = f"{split}-{len(shards):06d}.tar", [], 0
                shards[name] = samples
                file = open_shard.enter_context(_tar(folder / name))
            file.write(block)
            samples.append((key, len(block)))
            end += len(block)
    for name in shards:
        sync(folder / name)
    return shards


@contextmanager
def _tar(path: Path) -> Iterator[BinaryIO]:
    """A new file that ends as a tar does: with two empty blocks, and more up to a whole record."""
    with open(path, "xb") as file:
        yield file
        end = 2 * tarfile.BLOCKSIZE
        file.write(bytes(end + -(file.tell() + end) % tarfile.RECORDSIZE))


def describe(
    folder: Path, split: str, shards: Mapping[str, Sizes], has_sketch: bool, labels: dict[str, list[Any]]
) -> dict[str, Any]:
    """Writes the files of a split's index and labels; returns its part of the manifest.

    The hashes are those of the files on the disk.
    """
    keys, lengths, hashes, files = list[str](), list[int](), list[bytes](), list[dict[str, Any]]()
    for name, samples in shards.items():
        size, first = (folder / name).stat().st_size, len(lengths)
        keys += [key for key, _ in samples]
        lengths += [length for _, length in samples]
        with open_regular(folder / name) as file:
            own, whole = hashes_in(file.read, lengths[first:], size)
        hashes += own
        files.append({"file": name, "bytes": size, "sha256": whole, "count": len(samples)})
    index = _written(folder / f"{split}-index.safetensors", to_bytes(keys, lengths, hashes))
    found: dict[str, Any] = {"count": len(keys), "has_sketch": has_sketch, "shards": files, "index": index}
    if labels:
        text = json.dumps(labels, ensure_ascii=False, separators=(",", ":"))
        found["labels"] = _written(folder / f"{split}-labels.json", f"{text}\n".encode())
    return found


def _written(path: Path, data: bytes) -> File:
    write_atomic(path, data)
    return {"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
