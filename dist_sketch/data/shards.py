"""The one door for samples: one split of packed shards, read by index."""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import open_regular
from dist_sketch.core.places import Address, Place
from dist_sketch.core.toml_dataclass import SHOWN
from dist_sketch.data import local_copy, pixels
from dist_sketch.data.image_files import MAX_PIXELS, read_packed
from dist_sketch.data.manifest import Fit, read_index, read_manifest
from dist_sketch.data.names import encode_key
from dist_sketch.data.remote_samples import RemoteSamples, Wanted
from dist_sketch.data.store import Access

MOST_BYTES = 2**26  # of a sample; two PNGs of noise at 2048 px, the largest size, have 25 MB
GROUP = 32  # samples of an address that are read at once where nothing else says how many
MOST_HEADERS = 9  # of a sample: each of its three members may have two more, for a long name
MOST_EXTENSION = 8192  # bytes of such a header's contents
MOST_NAME_BYTES = 251  # a file name has at most 255, and the name gets .png or .jpg


class Sample(NamedTuple):
    """A line drawing and its sketch, if it has one: uint8 (C, H, W) each."""

    name: str
    line: Tensor
    sketch: Tensor | None
    source_size: tuple[int, int]  # (width, height) of the line's file


class BadSample(UserError):
    """A sample whose bytes are not what the manifest says."""


class Shards:
    """One split of the shards in a folder or at an address, read by index.

    The index is in arrays, whose memory forked workers share.

    Args:
        access: how an address is read.

    Raises:
        UserError: there is no readable manifest, or no such split.
    """

    def __init__(self, folder: Place, split: str, access: Access = Access()):  # noqa: B008 - it never changes
        manifest = read_manifest(folder)
        if split not in manifest["splits"]:
            raise UserError(f"{folder}: has no split {split!r}; it has {', '.join(manifest['splits'])}")
        part = manifest["splits"][split]
        self.folder, self.split, self.access = local_copy.nearest(folder), split, access
        self._remote = RemoteSamples(self.folder, manifest, split, access) if isinstance(self.folder, Address) else None
        self.group = 1 if self._remote is None else GROUP  # samples that are best read at once
        self.size: int = manifest["size"]
        self.fit: Fit = manifest["settings"].get("fit", "squash")
        self.paired: dict[str, bool] = {name: p["has_sketch"] for name, p in manifest["splits"].items()}
        self.has_sketch = self.paired[split]
        self.files = [s["file"] for s in part["shards"]]
        index = read_index(folder, manifest, split)
        self.keys, self.hashes = index.keys, index.hashes
        self.shard_numbers, self.offsets, self.lengths = index.shards, index.offsets, index.lengths

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, i: int, channels: int) -> Sample:
        """Reads sample `i`, in the manifest's order.

        Raises:
            BadSample: the shard is missing or short, the hash is wrong, or the bytes are not a pair of this size.
            NoAnswer: the store at an address refuses, or does not answer.
        """
        (block,) = [self._block(i)] if self._remote is None else self._remote.read(self._wanted([i]))
        return self._checked(i, block, channels)

    def read_several(self, numbers: Sequence[int], channels: int) -> list[Sample | BadSample]:
        """Reads samples: from a folder each with one `pread`, from an address all with requests that run together.

        Raises:
            NoAnswer: the store at an address refuses, or does not answer. All else concerns one sample.
        """
        if self._remote is None:
            return [_or_bad(self.read, i, channels) for i in numbers]
        blocks = self._remote.read(self._wanted(numbers))
        return [_or_bad(self._checked, i, block, channels) for i, block in zip(numbers, blocks, strict=True)]

    def stream(self, numbers: Iterable[int], channels: int) -> Iterator[tuple[int, Sample | BadSample]]:
        """Reads samples one after another, those of an address in groups; raises as `read_several`."""
        rest = iter(numbers)
        while group := list(islice(rest, self.group)):
            yield from zip(group, self.read_several(group, channels), strict=True)

    def _wanted(self, numbers: Sequence[int]) -> list[Wanted]:
        return [
            Wanted(
                int(self.shard_numbers[i]),
                int(self.offsets[i]),
                int(self.lengths[i]) if self.lengths[i] <= MOST_BYTES else 0,
                self.hashes[i].tobytes(),
            )
            for i in numbers
        ]

    def _block(self, i: int) -> bytes | OSError:
        if self.lengths[i] > MOST_BYTES:
            return b""
        assert not isinstance(self.folder, Address)
        try:
            with open_regular(self.folder / self.files[self.shard_numbers[i]]) as f:
                return os.pread(f.fileno(), int(self.lengths[i]), int(self.offsets[i]))
        except OSError as e:
            return e

    def _checked(self, i: int, block: bytes | OSError, channels: int) -> Sample:
        key, file, length = self.keys[i], self.folder / self.files[self.shard_numbers[i]], int(self.lengths[i])
        if length > MOST_BYTES:
            raise BadSample(f"{file}: sample {key!r} has {length:,} bytes; {MOST_BYTES:,} can be read")
        if isinstance(block, OSError):
            raise BadSample(f"{file}: cannot be read at sample {key!r} ({block.strerror})") from block
        if hashlib.sha256(block).digest() != self.hashes[i].tobytes():
            raise BadSample(
                f"{file}: sample {key!r} is not what the manifest says (length or hash); pack the shards again, "
                "or leave such samples out (train --data.skip-bad N, infer --skip-bad)"
            )
        try:
            return self._sample(key, block, channels)
        except Exception as e:  # a stranger may have packed it, and tarfile and Pillow raise almost any exception
            raise BadSample(f"{file}: sample {key!r} {e}") from e

    def _sample(self, key: str, block: bytes, channels: int) -> Sample:
        members = _members(block)
        expected = [f"{key}.json", f"{key}.line.png"] + [f"{key}.sketch.png"] * self.has_sketch
        if sorted(name for name, _ in members) != expected:
            names = SHOWN.repr([name for name, _ in members])
            raise ValueError(f"holds {names}: the manifest belongs to other shards")
        about, *pictures = (data for _, data in sorted(members))
        name, source_size = _about(about)
        if encode_key(name) != key:  # keys are unique, so the files that get the names are, too
            raise ValueError(f"has the name {name!r}, which is not that of its key")
        images = [pixels.from_image(_picture(data, self.size), channels) for data in pictures]
        return Sample(name, images[0], images[1] if self.has_sketch else None, source_size)


def _or_bad(read: Callable[..., Sample], *arguments: Any) -> Sample | BadSample:
    try:
        return read(*arguments)
    except BadSample as e:
        return e


def _members(block: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of the members.

    `tarfile` reads the single headers only: a list of members made by a stranger may keep it busy without end.
    """
    found: list[tuple[str, bytes]] = []
    long_name, place, headers = "", 0, 0
    try:
        while any(header := block[place : place + tarfile.BLOCKSIZE]):  # a tar ends with zeros
            member = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
            start = place + tarfile.BLOCKSIZE
            data = block[start : start + max(member.size, 0)]
            headers += 1
            if len(data) != member.size or headers > MOST_HEADERS:
                raise ValueError("a size in it is wrong, or it has too many members")
            place = start + member.size + -member.size % tarfile.BLOCKSIZE
            if member.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
                if member.size > MOST_EXTENSION:
                    raise ValueError(f"a name in it has {member.size:,} bytes")
                pax = member.type == tarfile.XHDTYPE
                long_name = _pax_name(data) if pax else data.rstrip(b"\0").decode()
            elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                found.append((long_name or member.name, data))
                long_name = ""
            else:
                raise ValueError(f"the member {SHOWN.repr(member.name)} is not a plain file")
    except Exception as e:
        raise ValueError(f"is not a plain tar ({e})") from e
    return found


def _pax_name(data: bytes) -> str:
    """The name in a member's PAX records, each of which is "LENGTH KEY=VALUE" and a line break; "" if it is not there.

    Raises:
        ValueError: it is none, or it says how long the member is, which the member's own header has to say.
    """
    name = ""
    while data:
        length = int(data[: data.index(b" ")])
        record, data = data[:length], data[length:]
        key, equals, value = record.partition(b" ")[2].partition(b"=")
        if len(record) != length or not equals or not value.endswith(b"\n"):
            raise ValueError("a PAX record is damaged")
        if key == b"size" or key.startswith(b"GNU.sparse."):
            raise ValueError("a PAX record changes the size of a member")
        if key == b"path":
            name = value[:-1].decode()
    return name


def _about(data: bytes) -> tuple[str, tuple[int, int]]:
    """The name of the sample, which output files get, and the (width, height) of the line's file."""
    try:
        about = json.loads(data)
        name, size = about["name"], (about["line"]["width"], about["line"]["height"])
        fits = len(name.encode()) <= MOST_NAME_BYTES and "\0" not in name
    except Exception as e:
        raise ValueError(f"has no JSON with a name and a size ({e!r})") from e
    if not fits:
        raise ValueError(f"has the name {name!r}, which no file can have")
    if "/" in name or name in ("", ".", ".."):
        raise ValueError(f"has the name {name!r}, which leaves its folder")
    if not all(type(side) is int and side > 0 for side in size) or size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"says that its line had {size[0]!r} x {size[1]!r} px")
    return name, size


def _picture(data: bytes, size: int) -> Image.Image:
    try:
        return read_packed(data, size)
    except UnidentifiedImageError as e:
        raise ValueError("has a picture that is not a PNG") from e
    except Exception as e:
        raise ValueError(f"has a picture that cannot be used: {e}") from e
