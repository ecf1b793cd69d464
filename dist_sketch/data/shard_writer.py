"""Writes samples into the tar files of one split, the same bytes for the same samples, and describes them."""

import tarfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dist_sketch.core.folders import sync
from dist_sketch.data.hashes import Span, hashes_of
from dist_sketch.data.manifest import COLUMNS

PackedSample = dict[str, Any]  # {"__key__": str, "json": bytes, "line.png": bytes, "sketch.png": bytes}


def write(samples: Iterable[PackedSample], folder: Path, split: str, limit: int, count: int) -> dict[str, list[Span]]:
    """Writes the split's shards; returns what each file holds."""
    # Imported here, because it imports torch, which takes each worker process 3 s.
    from webdataset import TarWriter

    shards: dict[str, list[Span]] = {}
    spans: list[Span] = []
    used = 0
    with ExitStack() as open_shard:
        for sample in samples:
            # a member has a header (and a PAX header if the name needs one) and is padded to whole blocks
            header = 512 if sample["__key__"].isascii() and len(sample["__key__"]) < 80 else 2048
            need = sum(header + len(v) + -len(v) % 512 for k, v in sample.items() if k != "__key__")
            if not shards or (count and len(spans) == count) or used + need > limit:
                open_shard.close()
                name, spans, used = f"{split}-{len(shards):06d}.tar", [], tarfile.RECORDSIZE
                shards[name] = spans
                file = open_shard.enter_context(open(folder / name, "xb"))
                # Fixed owner and time make the bytes reproducible; PAX allows long and non-ASCII names.
                about = {"user": "dist_sketch", "group": "dist_sketch", "mtime": 0, "format": "PAX_FORMAT"}
                tar = open_shard.enter_context(TarWriter(file, encoder=False, **about))
            start = tar.tarstream.offset
            tar.write(sample)
            spans.append((sample["__key__"], start, tar.tarstream.offset - start))
            used += need
    for name in shards:
        sync(folder / name)
    return shards


def describe(folder: Path, shards: dict[str, list[Span]], has_sketch: bool) -> dict[str, Any]:
    """A split's part of the manifest; the hashes are those of the files on the disk."""
    index: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    files = []
    for number, (name, spans) in enumerate(shards.items()):
        size = (folder / name).stat().st_size
        hashes, whole = hashes_of(folder / name, spans, size)
        for (key, offset, length), digest in zip(spans, hashes, strict=True):
            for column, value in zip(COLUMNS, (key, number, offset, length, digest), strict=True):
                index[column].append(value)
        files.append({"file": name, "bytes": size, "sha256": whole, "count": len(spans)})
    return {"count": len(index["key"]), "has_sketch": has_sketch, "shards": files, "index": index}
