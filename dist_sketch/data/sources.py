"""What `infer` reads: packed shards, a folder of images, or images by name, each at the network's size."""

import glob
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from dist_sketch.core.config import Config
from dist_sketch.core.errors import UserError
from dist_sketch.data import looks, pixels, recipe
from dist_sketch.data.fit import fitted
from dist_sketch.data.image_files import BadImage, read_image
from dist_sketch.data.manifest import MANIFEST, Fit, read_manifest
from dist_sketch.data.shards import BadSample, Sample, Shards


@dataclass(frozen=True)
class Source:
    """The images that `infer` draws; `read(i, size, channels)` gives number `i` at the network's size."""

    path: Path
    """The shards, the folder or the one image; of several images the folder that they have in common."""
    count: int
    has_sketch: bool
    read: Callable[[int, int, int], Sample]
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
        self, numbers: Iterable[int], size: int, channels: int, most_px: float = math.inf
    ) -> tuple[dict[int, Sample], list[str]]:
        """Reads those of the images that can be read, by number, and says of each of the others why it cannot.

        Args:
            size: width and height, px, that the network wants.
            most_px: larger files, in width or height, are left out, too.
        """
        good, left_out = {}, []
        for i in numbers:
            try:
                sample = self.read(i, size, channels)
            except (BadImage, BadSample) as e:
                left_out.append(str(e))
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


def named(words: Sequence[Path]) -> list[Path]:
    """The inputs that a user names; what has wildcards and is no path (`'faces/*.png'`) stands for what matches it.

    Each is there once, in the user's order, and the matches of a word in natural order of their names.

    Raises:
        UserError: there is no input, or nothing matches.
    """
    found: dict[str, Path] = {}
    for word in words:
        matches = [word]
        if glob.has_magic(str(word)) and not os.path.lexists(word):
            matches = sorted(map(Path, glob.glob(str(word), recursive=True)), key=lambda p: recipe.natural(str(p)))
            if not matches:
                raise UserError(f"--input {word}: there is nothing of such a name")
        for path in matches:
            found.setdefault(os.path.abspath(path), path)
    if not found:
        raise UserError("--input: name shards, a folder of images, or images")
    return list(found.values())


def open_source(source: Path | Sequence[Path], split: str, *, fit: Fit | None = None, invert: bool = False) -> Source:
    """Opens shards, a folder of images (with or without splits and sketches), or one or more image files.

    Args:
        fit: how a page that is not square becomes one; None: squash, or as the shards were packed.
        invert: the lines are white on black, and get dark on white.

    Raises:
        UserError: nothing there can be used, two images have the same name, or the shards were packed with another
            `fit`.
    """
    given = [source] if isinstance(source, Path) else list(source)
    files = given if len(given) > 1 else []
    path = Path(os.path.commonpath([file.resolve().parent for file in files])) if files else given[0]
    found: dict[str, list[str]] = {}

    def look(name: str, kinds: list[str]) -> None:
        for kind in kinds:
            found.setdefault(kind, []).append(name)

    if not files and (path / MANIFEST).is_file():
        shards = Shards(path, split)
        if fit not in (None, shards.fit):
            raise UserError(
                f"--fit {fit}: {path} was packed with --fit {shards.fit}; leave the option out, or give the folder of "
                "the images instead of shards"
            )

        def read_packed(i: int, size: int, channels: int) -> Sample:
            sample = shards.read(i, channels)
            line = pixels.resize(255 - sample.line if invert else sample.line, size, size)
            sketch = None if sample.sketch is None else pixels.resize(sample.sketch, size, size)
            look(sample.name, looks.look_at_input(_picture(line)))
            return sample._replace(line=line, sketch=sketch)

        return Source(path, len(shards), shards.has_sketch, read_packed, shards.fit, packed_px=shards.size, looks=found)

    pairs = _pairs_of(files) if files else recipe.inputs(path, split)
    passed_over = {} if files or path.is_file() else recipe.passed_over(recipe.input_recipe(path, split))
    how = fit or "squash"

    def read_files(i: int, size: int, channels: int) -> Sample:
        pair = pairs[i]
        if isinstance(pair, recipe.Problem):
            raise BadImage(path / pair.file, pair.why)
        file = read_image(pair.line)
        line = fitted(file, file.size, size, how, invert=invert)
        sketch = fitted(read_image(pair.sketch), file.size, size, how) if pair.sketch else None
        squashed = how == "squash" and not looks.is_square(*file.size)
        look(pair.name, [*looks.look_at_input(line), *(["shape"] if squashed else [])])
        real = None if sketch is None else pixels.from_image(sketch, channels)
        return Sample(pair.name, pixels.from_image(line, channels), real, file.size)

    has_sketch = all(p.sketch is not None for p in pairs if isinstance(p, recipe.FilePair))
    return Source(path, len(pairs), has_sketch, read_files, how, files, passed_over=passed_over, looks=found)


def _pairs_of(files: Sequence[Path]) -> list[recipe.FilePair | recipe.Problem]:
    """Images by name, as lines without sketches."""
    found: dict[str, Path] = {}
    for file in files:
        if file.is_dir():
            raise UserError(f"{file}: is a folder; --input takes one folder, or several images: '{file}/*.png'")
        if (other := found.setdefault(recipe.encode_key(file.stem), file)) != file:
            raise UserError(
                f"{file}: its drawing would get the name of that of {other}; rename one of them, or draw them into "
                "folders of their own"
            )
    return [pair for file in files for pair in recipe.inputs(file, "")]


def reference_shards(config: Config, source: Path) -> str | None:
    """The shards that give the baseline "other real sketches": the run's, else the input's; None if there are none.

    An exported generator does not know where the run's shards are.
    """
    for folder in (config.data.shards, source):
        if folder is not None and (folder / MANIFEST).is_file():
            train = read_manifest(folder)["splits"].get("train")
            if train is not None and train["has_sketch"]:
                return str(folder.resolve())
    return None


def labels_of(path: Path, split: str, names: Sequence[str]) -> dict[str, list[Any]]:
    """The labels that shards have for the pictures of these names: label -> a value for each, None where it has none.

    Raises:
        UserError: the manifest is damaged.
    """
    if not (path / MANIFEST).is_file():
        return {}
    part = read_manifest(path)["splits"].get(split, {})
    columns = part.get("labels", {})
    place = {key: i for i, key in enumerate(part["index"]["key"])} if columns else {}
    places = [place.get(recipe.encode_key(name)) for name in names]
    return {label: [None if i is None else values[i] for i in places] for label, values in columns.items()}


def _picture(image: Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
