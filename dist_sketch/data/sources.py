"""What `infer` reads: packed shards, a folder of images or one image, each at the network's size."""

from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image
from torch import Tensor

from dist_sketch.data import pixels, recipe
from dist_sketch.data.image_files import read_image
from dist_sketch.data.shards import Shards


class InputImage(NamedTuple):
    """One input at the network's size: uint8 (C, size, size)."""

    name: str
    line: Tensor
    sketch: Tensor | None
    source_size: tuple[int, int]  # (width, height)


class Source(Protocol):
    """What `infer` reads."""

    has_sketch: bool

    def __len__(self) -> int:
        """How many inputs there are."""

    def read(self, i: int) -> InputImage:
        """Input `i`."""


class FromShards:
    """Inputs out of packed shards."""

    def __init__(self, folder: Path, split: str, size: int, channels: int):
        self._shards, self._size, self._channels = Shards(folder, split), size, channels
        self.has_sketch = self._shards.has_sketch

    def __len__(self) -> int:
        return len(self._shards)

    def read(self, i: int) -> InputImage:
        """Input `i`, resized if the shards were packed at another size than the network's."""
        sample = self._shards.read(i, self._channels)
        line, sketch = (
            x if x is None else pixels.resize(x, self._size, self._size) for x in (sample.line, sample.sketch)
        )
        assert line is not None
        return InputImage(sample.name, line, sketch, sample.source_size)


class FromFiles:
    """Inputs out of a folder, with or without splits and sketches, or one image file."""

    def __init__(self, path: Path, split: str, size: int, channels: int):
        self._pairs, self._size, self._channels = recipe.inputs(path, split), size, channels
        self.has_sketch = all(p.sketch is not None for p in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def read(self, i: int) -> InputImage:
        """Input `i`, resized as `pack` does it."""
        pair = self._pairs[i]
        line, source_size = self._open(pair.line)
        sketch = self._open(pair.sketch)[0] if pair.sketch is not None else None
        return InputImage(pair.name, line, sketch, source_size)

    def _open(self, path: Path) -> tuple[Tensor, tuple[int, int]]:
        image = read_image(path)
        small = image.resize((self._size, self._size), Image.Resampling.BICUBIC)
        return pixels.from_image(small, self._channels), image.size


def open_source(path: Path, split: str, size: int, channels: int) -> Source:
    """Shards, a folder, or one image.

    Raises:
        UserError: nothing usable lies there.
    """
    if (path / "manifest.json").is_file():
        return FromShards(path, split, size, channels)
    return FromFiles(path, split, size, channels)
