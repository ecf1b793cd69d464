"""manifest.json of a folder of shards, which holds the hashes of all bytes, and the files beside it that it names.

Format 2 keeps each split's index, and its labels, in a file of its own. Format 1 (until November 2026) had them as
lists in manifest.json; it is still read.
"""

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import parse_json
from dist_sketch.core.labels import Labels
from dist_sketch.core.places import Address, Place
from dist_sketch.core.saved import Count, Digest, Name, Side
from dist_sketch.core.toml_dataclass import Rule, checked
from dist_sketch.data.store import read_file

if TYPE_CHECKING:
    from dist_sketch.data.index import Index

FORMAT = 2
MANIFEST = "manifest.json"
MOST_KEY = 1000  # longer than a file's name may be, because `names.encode_key` writes some characters as three
AGAIN = "the file is damaged: pack the images again"
Fit = Literal["squash", "pad", "crop"]  # how a page that is not square becomes one; see `data.fit`


def _is_key(text: str) -> bool:
    return text not in ("", ".", "..") and "/" not in text and "\0" not in text and len(text) < MOST_KEY


Key = Annotated[str, Rule(f"a name of fewer than {MOST_KEY} characters, percent-encoded", _is_key)]
Samples = Annotated[int, Rule("a number from 1 to 10^12", lambda v: 1 <= v <= 10**12)]


class File(TypedDict):
    """A file beside the manifest."""

    file: Name
    bytes: Count
    sha256: Digest


class Shard(File):
    """A tar of a split."""

    count: Samples


class PlainSplit(TypedDict):
    """What both formats say of a part of the data."""

    count: Samples
    has_sketch: bool
    shards: list[Shard]


class Split(PlainSplit):
    """A part of the data."""

    index: File  # as `data.index` reads it
    labels: NotRequired[File]  # JSON: label -> a value for each sample, in the index's order


class Columns(TypedDict):
    """The index of a split in format 1."""

    key: list[Key]
    shard: list[Count]
    offset: list[Count]
    length: list[Count]
    sha256: list[Digest]


class OldSplit(PlainSplit):
    """A part of the data in format 1."""

    index: Columns
    labels: NotRequired[Labels]


class PackSettings(TypedDict, total=False):
    """How `pack` made the pictures: of its settings, what readers need; `fit` and `invert` are left out at defaults."""

    fit: Fit
    invert: bool


class PlainManifest(TypedDict):
    """What both formats say of the whole."""

    size: Side
    recipe: str
    license: str
    settings: PackSettings
    skipped: list[dict[str, Any]]
    looks: NotRequired[dict[str, list[str]]]


class Manifest(PlainManifest):
    """The whole file."""

    format: Literal[2]
    splits: dict[Name, Split]


class OldManifest(PlainManifest):
    """The whole file in format 1."""

    format: Literal[1]
    splits: dict[Name, OldSplit]


FORMATS = {1: OldManifest, 2: Manifest}


def read_manifest(shards: Place) -> dict[str, Any]:
    """Reads manifest.json; `read_index` and `read_labels` read what it says of single samples.

    Raises:
        UserError: it is missing, damaged, or of a newer format.
    """
    path = shards / MANIFEST
    if not isinstance(shards, Address):
        if shards.is_file():
            raise UserError(f"{shards}: is a file; name its folder, {shards.parent}")
        if not shards.is_dir():
            raise UserError(f"{shards}: there is no such folder; make it with: dist-sketch pack SOURCE --out {shards}")
        if not (shards / MANIFEST).is_file():
            raise UserError(
                f"{path}: is missing: {shards} is not a folder of packed shards (dist-sketch pack makes one)"
            )
    try:
        found = parse_json(_read(shards, MANIFEST).decode("utf-8-sig"))
    except ValueError as e:
        raise UserError(f"{path}: is not valid JSON: {e}") from e
    version = found.get("format") if isinstance(found, dict) else None
    if type(version) is int and version not in FORMATS:
        raise UserError(f"{path}: has format {version}, but this version reads {FORMAT}: pack the images again")
    try:
        manifest: dict[str, Any] = checked(FORMATS[version if type(version) is int else FORMAT], found, str(path))
        names = files_of(manifest)
        if not any(split["shards"] for split in manifest["splits"].values()) or len(set(names)) < len(names):
            raise UserError(f"{path}: names no shards, or a file twice")
        for name, split in manifest["splits"].items():
            if sum(shard["count"] for shard in split["shards"]) != split["count"]:
                raise UserError(f"{path}: splits.{name}: its shards have not {split['count']} samples")
    except UserError as e:
        raise UserError(f"{e}; {AGAIN}") from e
    return manifest


def files_of(manifest: dict[str, Any]) -> list[str]:
    """Names of the files that belong to the shards: the manifest itself and those that it names."""
    names = [MANIFEST]
    for split in manifest["splits"].values():
        others = [split[kind] for kind in ("index", "labels") if kind in split and manifest["format"] != 1]
        names += [file["file"] for file in (*split["shards"], *others)]
    return names


def read_index(shards: Place, manifest: dict[str, Any], split: str) -> "Index":
    """The index of a split of the manifest that `read_manifest` gave for these shards.

    Raises:
        UserError: its file is missing or damaged, or its samples are not those of the shards.
    """
    from dist_sketch.data import index as indices  # only here, because `--help` imports this module without numpy

    part = manifest["splits"][split]
    try:
        if manifest["format"] == 1:
            return indices.from_columns(part["index"], part["shards"], f"{shards / MANIFEST}: splits.{split}")
        data = _read_file(shards, part["index"])
        return indices.from_bytes(data, part["shards"], str(shards / part["index"]["file"]))
    except UserError as e:
        raise UserError(f"{e}; {AGAIN}") from e


def read_labels(shards: Place, manifest: dict[str, Any], split: str) -> dict[str, list[Any]]:
    """The labels of a split, as label -> a value for each sample in the index's order, None where it has none.

    Raises:
        UserError: their file is missing or damaged.
    """
    part = manifest["splits"][split]
    found, where = part.get("labels", {}), f"{shards / MANIFEST}: splits.{split}"
    try:
        if manifest["format"] != 1 and found:
            where = str(shards / found["file"])
            try:
                found = parse_json(_read_file(shards, found).decode())
            except ValueError as e:
                raise UserError(f"{where}: is not valid JSON: {e}") from e
        labels: dict[str, list[Any]] = checked(Labels, found, where)
        for label, values in labels.items():
            if len(values) != part["count"]:
                raise UserError(f"{where}: {label}: has {len(values)} values for {part['count']} samples")
    except UserError as e:
        raise UserError(f"{e}; {AGAIN}") from e
    return labels


def manifest_hash(shards: Place) -> str:
    """SHA-256 (hex) of manifest.json, which contains the hashes of all files and so identifies the whole data set.

    Raises:
        UserError: it cannot be read.
    """
    return hashlib.sha256(_read(shards, MANIFEST)).hexdigest()


def _read(shards: Place, name: str) -> bytes:
    try:
        return read_file(shards, name)
    except OSError as e:
        raise UserError(f"{shards / name}: cannot be read ({e.strerror})") from e


def _read_file(shards: Place, file: dict[str, Any]) -> bytes:
    """The bytes of a file that the manifest names, if they are those that it names."""
    data = _read(shards, file["file"])
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise UserError(f"{shards / file['file']}: has another SHA-256 than the manifest says")
    return data
