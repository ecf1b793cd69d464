"""Where drawings differ from the real sketches: means over the pictures of an output folder, pixel by pixel.

All portraits are framed alike, so a pixel shows about the same part of the face in each of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_sketch.core.saved import read_finished_infer
from dist_sketch.data import pixels
from dist_sketch.data.image_files import read_image
from dist_sketch.metrics.similarity import ssim_map
from dist_sketch.model.denoise import page_tone
from dist_sketch.reports.page import VARIANT_FOLDERS, data_uri

Plane = NDArray[np.float32]  # (H, W), gray [0, 255]

MAX_PICTURES = 500  # in a map, evenly spread over the output
INK = 40.0  # gray levels; a pixel that is darker than the page by more is ink
COLOUR_MAP = "inferno"
TOP_QUANTILE = 0.995  # of a map's values; all above it have the brightest colour


class ErrorMap(NamedTuple):
    """Means over `n` pictures; arrays (H, W)."""

    n: int
    real: Plane  # the real sketches, [0, 255]
    l1: Plane  # absolute difference, [0, 1]
    dissimilarity: Plane  # 1 - SSIM
    ink: float  # share of the real sketches' pixels that are ink
    ink_error: float  # share of the absolute difference that lies on these pixels


def pairs(output: Path, variant: str, most: int | None = None) -> Iterator[tuple[Plane, Plane]]:
    """Yields the drawn and the real pictures of an output folder in gray, at the network's size.

    Args:
        variant: "raw" or "denoised".
        most: at most this number of pairs, evenly spread; None: all.

    Raises:
        UserError: a picture is missing or damaged.
    """
    infer = read_finished_infer(output, "size", "format")
    names, size = infer["names"], infer["size"]
    count = min(most or len(names), len(names))
    for i in range(count):
        name = names[i * len(names) // count]
        drawn = _plane(output / VARIANT_FOLDERS[variant] / f"{name}.{infer['format']}", size)
        yield drawn, _plane(output / "real" / f"{name}.png", size)


def _plane(path: Path, size: int) -> Plane:
    image = pixels.resize(pixels.from_image(read_image(path), 3), size, size)
    plane: Plane = image.numpy().astype(np.float32).mean(axis=0)
    return plane


def error_map(output: Path, variant: str) -> ErrorMap:
    """The maps of an output folder that has real sketches.

    Raises:
        UserError: a picture is missing or damaged.
    """
    sums: Any = 0.0
    count, ink, on_ink = 0, 0.0, 0.0
    for drawn, real in pairs(output, variant, MAX_PICTURES):
        difference = np.abs(drawn - real) / 255
        sums = sums + np.stack([real, difference, 1 - ssim_map(drawn, real)])
        dark = page_tone(real) - real > INK
        count, ink, on_ink = count + 1, ink + dark.mean(), on_ink + float(difference[dark].sum())
    whole = float(sums[1].sum())
    mean, l1, dissimilarity = (sums / count).astype(np.float32)
    return ErrorMap(count, mean, l1, dissimilarity, ink / count, on_ink / whole if whole else 0.0)


def coloured(plane: Plane) -> tuple[str, float]:
    """A map as the data URI of a PNG in which black is 0, and the value from which on it has the brightest colour."""
    top = float(np.quantile(plane, TOP_QUANTILE))
    shades = matplotlib.colormaps[COLOUR_MAP](np.clip(plane / max(top, 1e-9), 0, 1), bytes=True)
    return data_uri(Image.fromarray(shades[..., :3]), "png"), top


def gray(plane: Plane) -> str:
    """A gray picture as the data URI of a PNG."""
    return data_uri(Image.fromarray(np.rint(plane).clip(0, 255).astype(np.uint8)), "png")
