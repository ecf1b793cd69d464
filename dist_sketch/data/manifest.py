"""manifest.json of a folder of shards: where each sample lies, and the hashes of all bytes."""

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json, sha256
from dist_sketch.core.labels import Labels
from dist_sketch.core.saved import Count, Digest, Name, Side
from dist_sketch.core.toml_dataclass import Rule, checked

FORMAT = 1
MANIFEST = "manifest.json"
MOST_KEY = 1000
Fit = Literal["squash", "pad", "crop"]  # how a page that is not square becomes one; see `data.fit`


def _is_key(text: str) -> bool:
    return text not in ("", ".", "..") and "/" not in text and "\0" not in text and len(text) < MOST_KEY


# Longer than a file's name may be, because `recipe.encode_key` writes some characters as three.
Key = Annotated[str, Rule(f"a name of fewer than {MOST_KEY} characters, percent-encoded", _is_key)]


class Index(TypedDict):
    """A split's samples, in columns; they lie back to back in their shards."""

    key: list[Key]
    shard: list[Count]
    offset: list[Count]
    length: list[Count]
    sha256: list[Digest]


COLUMNS = tuple(Index.__annotations__)


class Shard(TypedDict):
    """A file of a split."""

    file: Name
    bytes: Count
    sha256: Digest
    count: Count


class Split(TypedDict):
    """A part of the data."""

    count: Count
    has_sketch: bool
    shards: list[Shard]
    index: Index
    labels: NotRequired[Labels]  # label -> a value for each sample, in the index's order


class PackSettings(TypedDict, total=False):
    """How `pack` made the pictures: of its settings, what readers need; `fit` and `invert` are left out at defaults."""

    fit: Fit
    invert: bool


class Manifest(TypedDict):
    """The whole file."""

    format: Literal[1]
    size: Side
    recipe: str
    license: str
    settings: PackSettings
    skipped: list[dict[str, Any]]
    looks: NotRequired[dict[str, list[str]]]
    splits: dict[Name, Split]


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
    found = read_json(path)
    version = found.get("format") if isinstance(found, dict) else None
    if isinstance(version, int) and version != FORMAT:
        raise UserError(f"{path}: has format {version}, but this version reads {FORMAT}: pack the images again")
    try:
        manifest: dict[str, Any] = checked(Manifest, found, str(path))
        names = [shard["file"] for split in manifest["splits"].values() for shard in split["shards"]]
        if not names or len(set(names)) < len(names):
            raise UserError(f"{path}: names no shards, or one of them twice")
        for name, split in manifest["splits"].items():
            _check_split(split, f"{path}: splits.{name}")
    except UserError as e:
        raise UserError(f"{e}; the file is damaged: pack the images again") from e
    return manifest


def _check_split(split: dict[str, Any], where: str) -> None:
    """Whether columns have equal lengths, keys are unique, and samples lie back to back in their shards."""
    index, shards, count = split["index"], split["shards"], split["count"]
    if any(len(index[name]) != count for name in COLUMNS) or len(set(index["key"])) != count or not count:
        raise UserError(f"{where}: has not {count} different samples in all columns of its index")
    for label, values in split.get("labels", {}).items():
        if len(values) != count:
            raise UserError(f"{where}: labels.{label}: has {len(values)} values for {count} samples")
    ends, counts = [0] * len(shards), [0] * len(shards)
    for shard, offset, length in zip(index["shard"], index["offset"], index["length"], strict=True):
        if shard >= len(shards) or offset != ends[shard] or not length:
            raise UserError(f"{where}: sample {sum(counts)} does not lie behind the one before it")
        ends[shard] += length
        counts[shard] += 1
    for shard, end, number in zip(shards, ends, counts, strict=True):
        if number != shard["count"] or end > shard["bytes"]:
            raise UserError(f"{where}: {shard['file']} holds other samples than the index says")


def manifest_hash(shards: Path) -> str:
    """SHA-256 (hex) of manifest.json, which contains the hashes of all shards and so identifies the whole data set.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return sha256(shards / MANIFEST)
    except OSError as e:
        raise UserError(f"{shards / MANIFEST}: cannot be read ({e.strerror})") from e
