"""What `infer` reads: packed shards, a folder of images, or images by name, each at the network's size."""

import glob
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from dist_sketch.core.config import Config
from dist_sketch.core.errors import UserError
from dist_sketch.core.places import Address, Place
from dist_sketch.core.words import tell
from dist_sketch.data import looks, pixels, recipe
from dist_sketch.data.fit import fitted
from dist_sketch.data.image_files import BadImage, read_image
from dist_sketch.data.inputs import input_recipe, inputs
from dist_sketch.data.manifest import MANIFEST, Fit, manifest_hash, read_index, read_labels, read_manifest
from dist_sketch.data.names import encode_key, natural
from dist_sketch.data.selection import chosen, refuse_none
from dist_sketch.data.shards import BadSample, Sample, Shards
from dist_sketch.data.store import NoAnswer, exists

REFERENCE_S = 10.0  # how long a baseline is waited for that an inference can do without


@dataclass(frozen=True)
class Source:
    """The images that `infer` draws.

    `read(numbers, size, channels)` gives them in this order at the network's size, or why one of them cannot be read.
    """

    path: Place
    """The shards, the folder or the one image; of several images the folder that they have in common."""
    count: int
    sha256: str
    """Of the shards' manifest, or of the images' names: it tells other inputs at the same place."""
    has_sketch: bool
    read: Callable[[Sequence[int], int, int], Iterator[Sample | BadImage | BadSample]]
    fit: Fit
    """How pages that are not square were made square."""
    files: list[Path] = field(default_factory=list)
    """The images, if several were named."""
    packed_px: int | None = None
    """Width and height of the pictures in shards."""
    passed_over: dict[str, dict[str, int]] = field(default_factory=dict)
    """What lies there and is not read: folder -> kind -> number of files."""
    looks: dict[str, list[str]] = field(default_factory=dict)
    """What the lines look like that were read up to now: key of `looks.WHY_INPUT` -> names."""

    def __len__(self) -> int:
        return self.count

    def read_good(
        self, numbers: Sequence[int], size: int, channels: int, most_px: float = math.inf
    ) -> tuple[dict[int, Sample], list[str]]:
        """Reads those of the images that can be read, by number, and says of each of the others why it cannot.

        Args:
            size: width and height, px, that the network wants.
            most_px: larger files, in width or height, are left out, too.
        """
        good, left_out = {}, []
        for i, sample in zip(numbers, self.read(numbers, size, channels), strict=True):
            if isinstance(sample, UserError):
                left_out.append(str(sample))
                continue
            width, height = sample.source_size
            if max(width, height) <= most_px:
                good[i] = sample
            else:
                left_out.append(
                    f"{sample.name}: its line has {width:,} x {height:,} px; no drawing of more than {most_px:,} px a "
                    "side is written: choose another --output-size"
                )
        return good, left_out


def named(words: Sequence[Place]) -> list[Place]:
    """The inputs that a user names; what has wildcards and is no path (`'faces/*.png'`) stands for what matches it.

    Each is there once, in the user's order, and the matches of a word in natural order of their names.

    Raises:
        UserError: there is no input, or nothing matches.
    """
    found: dict[str, Place] = {}
    for word in words:
        if isinstance(word, Address):
            found.setdefault(word, word)
            continue
        matches = [word]
        if glob.has_magic(str(word)) and not os.path.lexists(word):
            matches = sorted(map(Path, glob.glob(str(word), recursive=True)), key=lambda p: natural(str(p)))
            if not matches:
                raise UserError(f"--input {word}: there is nothing of such a name")
        for path in matches:
            found.setdefault(os.path.abspath(path), path)
    if not found:
        raise UserError("--input: name shards, a folder of images, or images")
    return list(found.values())


def open_source(
    source: Place | Sequence[Place],
    split: str,
    *,
    fit: Fit | None = None,
    usual: Fit = "squash",
    invert: bool = False,
    where: str = "",
) -> Source:
    """Opens shards (in a folder or at an address), a folder of images (with or without splits), or image files.

    Args:
        fit: how a page that is not square becomes one; None: as the shards were packed, and of images as `usual` says.
        invert: the lines are white on black, and get dark on white.
        where: of shards only the pairs for which this is true of their labels.

    Raises:
        UserError: nothing there can be used, two images have the same name, the shards were packed with another `fit`,
            or `where` chooses no pair.
    """
    given = [source] if isinstance(source, Path | Address) else list(source)
    files = [file for file in given if isinstance(file, Path)] if len(given) > 1 else []
    if len(given) > 1 and len(files) < len(given):
        raise UserError("--input: one address of shards is drawn at a time, without other inputs")
    path = Path(os.path.commonpath([file.resolve().parent for file in files])) if files else given[0]
    found: dict[str, list[str]] = {}

    def look(name: str, kinds: list[str]) -> None:
        for kind in kinds:
            found.setdefault(kind, []).append(name)

    if isinstance(path, Address) or (not files and (path / MANIFEST).is_file()):
        whole = Shards(path, split)
        shards = chosen(whole, where, "--where")
        refuse_none(shards, whole, where, "--where")
        if fit not in (None, shards.fit):
            raise UserError(
                f"--fit {fit}: {path} was packed with --fit {shards.fit}; leave the option out, or give the folder of "
                "the images instead of shards"
            )

        def read_packed(numbers: Sequence[int], size: int, channels: int) -> Iterator[Sample | BadSample]:
            for sample in shards.read_several(numbers, channels):
                if isinstance(sample, BadSample):
                    yield sample
                    continue
                line = pixels.resize(255 - sample.line if invert else sample.line, size, size)
                sketch = None if sample.sketch is None else pixels.resize(sample.sketch, size, size)
                look(sample.name, looks.look_at_input(_picture(line)))
                yield sample._replace(line=line, sketch=sketch)

        digest, px = manifest_hash(path), shards.size
        return Source(path, len(shards), digest, shards.has_sketch, read_packed, shards.fit, packed_px=px, looks=found)

    if where:
        raise UserError(f"--where: {path}: only packed shards keep labels; pack the images (dist-sketch pack)")
    pairs = _pairs_of(files) if files else inputs(path, split)
    listed = path.is_dir() and not files
    passed_over = recipe.passed_over(input_recipe(path, split)) if listed else {}
    how = fit or usual

    def read_files(numbers: Sequence[int], size: int, channels: int) -> Iterator[Sample | BadImage]:
        for i in numbers:
            try:
                yield read_pair(pairs[i], size, channels)
            except BadImage as e:
                yield e

    def read_pair(pair: recipe.FilePair | recipe.Problem, size: int, channels: int) -> Sample:
        if isinstance(pair, recipe.Problem):
            raise BadImage(path / pair.file, pair.why)
        pictures = {side: read_image(file, half) for side, file, half in pair.sides()}
        page = pictures["line"].size
        line = fitted(pictures["line"], page, size, how, invert=invert)
        sketch = fitted(pictures["sketch"], page, size, how) if pair.sketch else None
        squashed = how == "squash" and not looks.is_square(*page)
        look(pair.name, [*looks.look_at_input(line), *(["shape"] if squashed else [])])
        real = None if sketch is None else pixels.from_image(sketch, channels)
        return Sample(pair.name, pixels.from_image(line, channels), real, page)

    has_sketch = all(p.sketch is not None for p in pairs if isinstance(p, recipe.FilePair))
    names = "\n".join(pair.file if isinstance(pair, recipe.Problem) else pair.name for pair in pairs)
    digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
    return Source(path, len(pairs), digest, has_sketch, read_files, how, files, passed_over=passed_over, looks=found)


def _pairs_of(files: Sequence[Path]) -> list[recipe.FilePair | recipe.Problem]:
    """Images by name, as lines without sketches."""
    found: dict[str, Path] = {}
    for file in files:
        if file.is_dir():
            raise UserError(f"{file}: is a folder; --input takes one folder, or several images: '{file}/*.png'")
        if (other := found.setdefault(encode_key(file.stem), file)) != file:
            raise UserError(
                f"{file}: its drawing would get the name of that of {other}; rename one of them, or draw them into "
                "folders of their own"
            )
    return [pair for file in files for pair in inputs(file, "")]


def reference_shards(config: Config, source: Place) -> str | None:
    """The shards that give the baseline "other real sketches": the run's, else the input's; None if there are none.

    An exported generator does not know where the run's shards are. Those at an address may be out of reach.
    """
    for shards in (config.data.shards, source):
        try:
            if shards is None or not exists(shards, MANIFEST, patience_s=REFERENCE_S):
                continue
            train = read_manifest(shards)["splits"].get("train")
        except NoAnswer as e:
            tell(f"warning: no other real sketches are scored as a baseline: {e}")
            continue
        if train is not None and train["has_sketch"]:
            return str(shards.resolve())
    return None


def labels_of(path: Place, split: str, names: Sequence[str]) -> dict[str, list[Any]]:
    """The labels that shards have for the pictures of these names: label -> a value for each, None where it has none.

    Raises:
        UserError: the manifest is damaged.
    """
    if not exists(path, MANIFEST):
        return {}
    manifest = read_manifest(path)
    columns = read_labels(path, manifest, split) if split in manifest["splits"] else {}
    place = {key: i for i, key in enumerate(read_index(path, manifest, split).keys)} if columns else {}
    places = [place.get(encode_key(name)) for name in names]
    return {label: [None if i is None else values[i] for i in places] for label, values in columns.items()}


def _picture(image: Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
