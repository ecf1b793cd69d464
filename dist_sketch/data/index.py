"""The index of a split: the key, place, length and hash of each sample, in arrays, as it stands in a file of its own.

The file is a safetensors file with three arrays: `key` (uint8: the keys in UTF-8, each ended by a zero byte), `length`
(int64, N) and `sha256` (uint8, N x 32). Samples lie back to back, so their places follow from the lengths and from the
number of samples in each shard, which the manifest says.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_sketch.core.errors import UserError
from dist_sketch.data.manifest import MOST_KEY

MOST_LENGTH = 10**12  # bytes of a sample, as of any file
END = b"\0"  # of a key


class Keys:
    """The keys of samples, read like a list of texts but kept in one piece.

    A million Python texts take ten times the memory, and each process that is forked would get a copy of its own.

    Args:
        text: the keys in UTF-8, each ended by a zero byte.
    """

    def __init__(self, text: bytes):
        self.text = text
        self.ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 0)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        i = range(len(self))[i]  # raises IndexError, as a list does
        return self.text[self.ends[i - 1] + 1 if i else 0 : self.ends[i]].decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self.text.decode().split("\0")[:-1])


@dataclass(frozen=True)
class Index:
    """The samples of a split, in columns of equal length, in the order in which they lie in the shards."""

    keys: Keys
    shards: NDArray[np.int32]  # the number of the shard, as the manifest lists them
    offsets: NDArray[np.int64]  # in that shard, bytes
    lengths: NDArray[np.int64]  # bytes
    hashes: NDArray[np.uint8]  # (N, 32): the SHA-256 of these bytes

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self) -> Iterator[tuple[str, int, int, int, str]]:
        """Key, number of the shard, offset, length and SHA-256 in hexadecimal digits of each sample."""
        hashes = (digest.tobytes().hex() for digest in self.hashes)
        return zip(self.keys, self.shards.tolist(), self.offsets.tolist(), self.lengths.tolist(), hashes, strict=True)


def to_bytes(keys: Iterable[str], lengths: Sequence[int], hashes: Iterable[bytes]) -> bytes:
    """The contents of an index's file; equal samples give equal bytes."""
    from safetensors.numpy import save  # only here, because all who read a manifest import this module

    text = b"".join(key.encode() + END for key in keys)
    digests = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32)
    return save({"key": np.frombuffer(text, np.uint8), "length": np.array(lengths, np.int64), "sha256": digests})


def from_bytes(data: bytes, shards: Sequence[dict[str, Any]], where: str) -> Index:
    """The index in the contents of its file.

    Args:
        shards: the split's shards, as the manifest lists them.
        where: the file, for error messages.

    Raises:
        UserError: it is no such file, or its samples are not those of the shards.
    """
    from safetensors.numpy import load

    count = sum(shard["count"] for shard in shards)
    forms = {"key": (np.uint8, None), "length": (np.int64, (count,)), "sha256": (np.uint8, (count, 32))}
    try:
        found = load(data)
        for name, (kind, shape) in forms.items():
            if found[name].dtype != kind or (found[name].shape if shape else found[name].shape[1:]) != (shape or ()):
                raise ValueError(f"{name} is of another form")
    except Exception as e:  # a stranger may have made it, and its reader raises errors of many kinds
        raise UserError(f"{where}: is not the index of {count} samples ({e})") from e
    return _placed(Keys(found["key"].tobytes()), found["length"], found["sha256"], shards, where)


def from_columns(columns: dict[str, list[Any]], shards: Sequence[dict[str, Any]], where: str) -> Index:
    """The index in a manifest of format 1, which has it as lists.

    Raises:
        UserError: the samples are not those of the shards, or do not lie back to back.
    """
    count = sum(shard["count"] for shard in shards)
    if any(len(columns[name]) != count for name in ("key", "shard", "offset", "length", "sha256")):
        raise UserError(f"{where}: has not {count} samples in all columns of its index")
    keys = Keys("".join(f"{key}\0" for key in columns["key"]).encode())
    hashes = np.frombuffer(bytes.fromhex("".join(columns["sha256"])), np.uint8).reshape(-1, 32)
    index = _placed(keys, np.array(columns["length"], np.int64), hashes, shards, where)
    if columns["shard"] != index.shards.tolist() or columns["offset"] != index.offsets.tolist():
        raise UserError(f"{where}: a sample does not lie behind the one before it")
    return index


def _placed(
    keys: Keys,
    lengths: NDArray[np.int64],
    hashes: NDArray[np.uint8],
    shards: Sequence[dict[str, Any]],
    where: str,
) -> Index:
    """Checks keys and lengths, and gives the samples their places."""
    counts = np.array([shard["count"] for shard in shards])
    numbers = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
    if why := _wrong_keys(keys, len(numbers)):
        raise UserError(f"{where}: {why}")
    # With such lengths the sums below cannot leave the range of their type
    if lengths.min() < 1 or int(lengths.max()) * len(lengths) > np.iinfo(np.int64).max or lengths.max() > MOST_LENGTH:
        raise UserError(f"{where}: a sample has a length that none can have")
    starts = np.cumsum(lengths) - lengths
    offsets = starts - starts[np.cumsum(counts) - counts][numbers]
    ends = np.add.reduceat(lengths, np.cumsum(counts) - counts)
    for shard, end in zip(shards, ends, strict=True):
        if end > shard["bytes"]:
            raise UserError(f"{where}: {shard['file']} holds other samples than the index says")
    return Index(keys, numbers, offsets, lengths, hashes)


def _wrong_keys(keys: Keys, count: int) -> str:
    """What is wrong with the keys; "" if each of them is the plain name of one sample."""
    text, sizes = keys.text, np.diff(keys.ends, prepend=-1) - 1  # bytes of each
    if len(keys) != count or not text.endswith(END) or len(set(text.split(END))) != count + 1:
        return f"has not {count} different keys"
    try:
        text.decode()
    except UnicodeDecodeError:
        return "has a key that is not UTF-8"
    framed = END + text
    unsafe = b"/" in text or END * 2 in framed or b"\0.\0" in framed or b"\0..\0" in framed
    if unsafe or any(len(keys[i]) >= MOST_KEY for i in np.flatnonzero(sizes >= MOST_KEY).tolist()):
        return f"has a key that is not a name of fewer than {MOST_KEY} characters, percent-encoded"
    return ""
