"""What `infer` reads: packed shards, a folder of images or one image, each at the network's size."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from dist_sketch.core.errors import UserError
from dist_sketch.data import looks, pixels, recipe
from dist_sketch.data.fit import fitted
from dist_sketch.data.image_files import BadImage, read_image
from dist_sketch.data.manifest import MANIFEST, Fit, read_manifest
from dist_sketch.data.shards import BadSample, Sample, Shards


@dataclass(frozen=True)
class Source:
    """The images that `infer` draws; `read(i)` gives number `i` at the network's size."""

    count: int
    has_sketch: bool
    read: Callable[[int], Sample]
    fit: Fit
    """How pages that are not square were made square."""
    packed_px: int | None = None
    """Width and height of the pictures in shards."""
    passed_over: dict[str, dict[str, int]] = field(default_factory=dict)
    """What lies there and is not read: folder -> kind -> number of files."""
    looks: dict[str, list[str]] = field(default_factory=dict)
    """What the lines look like that were read up to now: key of `looks.WHY_INPUT` -> names."""

    def __len__(self) -> int:
        return self.count

    def read_good(self, numbers: Iterable[int], most_px: float = math.inf) -> tuple[dict[int, Sample], list[str]]:
        """Reads those of the images that can be read, by number, and says of each of the others why it cannot.

        Args:
            most_px: larger files, in width or height, are left out, too.
        """
        good, left_out = {}, []
        for i in numbers:
            try:
                sample = self.read(i)
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


def open_source(
    path: Path, split: str, size: int, channels: int, *, fit: Fit | None = None, invert: bool = False
) -> Source:
    """Opens shards, a folder of images (with or without splits and sketches), or one image file.

    Args:
        fit: how a page that is not square becomes one; None: squash, or as the shards were packed.
        invert: the lines are white on black, and get dark on white.

    Raises:
        UserError: there is nothing usable at `path`, or the shards were packed with another `fit`.
    """
    found: dict[str, list[str]] = {}

    def look(name: str, kinds: list[str]) -> None:
        for kind in kinds:
            found.setdefault(kind, []).append(name)

    if (path / MANIFEST).is_file():
        shards = Shards(path, split)
        if fit not in (None, shards.fit):
            raise UserError(
                f"--fit {fit}: {path} was packed with --fit {shards.fit}; leave the option out, or give the folder of "
                "the images instead of shards"
            )

        def read_packed(i: int) -> Sample:
            sample = shards.read(i, channels)
            line = pixels.resize(255 - sample.line if invert else sample.line, size, size)
            sketch = None if sample.sketch is None else pixels.resize(sample.sketch, size, size)
            look(sample.name, looks.look_at_input(_picture(line)))
            return sample._replace(line=line, sketch=sketch)

        return Source(len(shards), shards.has_sketch, read_packed, shards.fit, shards.size, looks=found)

    pairs = recipe.inputs(path, split)
    passed_over = {} if path.is_file() else recipe.passed_over(recipe.input_recipe(path, split))
    how = fit or "squash"

    def read_files(i: int) -> Sample:
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
    return Source(len(pairs), has_sketch, read_files, how, None, passed_over, found)


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
