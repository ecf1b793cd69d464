"""What `infer` reads: packed shards, a folder of images or one image, each at the network's size."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from torch import Tensor

from dist_sketch.data import pixels, recipe
from dist_sketch.data.image_files import BadImage, read_image
from dist_sketch.data.manifest import MANIFEST
from dist_sketch.data.shards import BadSample, Sample, Shards


@dataclass(frozen=True)
class Source:
    """The images that `infer` draws; `read(i)` gives number `i` at the network's size."""

    count: int
    has_sketch: bool
    read: Callable[[int], Sample]
    passed_over: dict[str, dict[str, int]] = field(default_factory=dict)
    """What lies there and is not read: folder -> kind -> number of files."""

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


def open_source(path: Path, split: str, size: int, channels: int) -> Source:
    """Opens shards, a folder of images (with or without splits and sketches), or one image file.

    Raises:
        UserError: there is nothing usable at `path`.
    """
    if (path / MANIFEST).is_file():
        shards = Shards(path, split)

        def read_packed(i: int) -> Sample:
            sample = shards.read(i, channels)
            line = pixels.resize(sample.line, size, size)
            sketch = None if sample.sketch is None else pixels.resize(sample.sketch, size, size)
            return sample._replace(line=line, sketch=sketch)

        return Source(len(shards), shards.has_sketch, read_packed)

    pairs = recipe.inputs(path, split)
    passed_over = {} if path.is_file() else recipe.passed_over(recipe.input_recipe(path, split))

    def resized(file: Path) -> tuple[Tensor, tuple[int, int]]:
        """The image as `pack` would resize it, and its own (width, height)."""
        image = read_image(file)
        return pixels.from_image(image.resize((size, size), Image.Resampling.BICUBIC), channels), image.size

    def read_files(i: int) -> Sample:
        pair = pairs[i]
        if isinstance(pair, recipe.Problem):
            raise BadImage(path / pair.file, pair.why)
        line, source_size = resized(pair.line)
        return Sample(pair.name, line, resized(pair.sketch)[0] if pair.sketch else None, source_size)

    has_sketch = all(p.sketch is not None for p in pairs if isinstance(p, recipe.FilePair))
    return Source(len(pairs), has_sketch, read_files, passed_over)
