"""Where drawings differ from the real sketches: means over all pictures of an output folder, pixel by pixel.

Portraits are framed alike, so that hair, eyes and collar lie at about the same places in all of them.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity

from dist_sketch.core.fileio import read_json
from dist_sketch.data import pixels
from dist_sketch.data.image_files import read_image
from dist_sketch.inference.denoise import page_tone
from dist_sketch.metrics import similarity

Plane = NDArray[np.float32]  # (H, W), gray [0, 255]


MOST = 500  # pictures that a map is the mean of; evenly spread over the output


INK = 40.0  # gray levels: what is darker than the page by so many is ink


COLOURS = "inferno"


QUANTILE = 0.995  # of the map's values; what lies above it gets the same colour


class ErrorMap(NamedTuple):
    """Means over `n` pictures; arrays (H, W)."""

    n: int
    real: Plane  # the real sketches, [0, 255]
    l1: Plane  # absolute difference, [0, 1]
    dissimilarity: Plane  # 1 - SSIM
    ink: float  # share of the real sketches' pixels that are ink
    ink_error: float  # share of the absolute difference that lies on them


def pairs(output: Path, variant: str, most: int | None = None) -> Iterator[tuple[Plane, Plane]]:
    """Drawn and real pictures of an output folder in gray, at the network's size.

    Args:
        variant: "raw" or "denoised".
        most: so many of them, evenly spread; None: all.

    Raises:
        UserError: a picture is missing or damaged.
    """
    about = read_json(output / "infer.json")
    folder, names, size = {"raw": "raw", "denoised": "sketch"}[variant], about["names"], about["size"]
    count = min(most or len(names), len(names))
    for i in range(count):
        name = names[i * len(names) // count]
        drawn = _plane(output / folder / f"{name}.{about['format']}", size)
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
    sums, count, on_ink, ink = None, 0, 0.0, 0.0
    for drawn, real in pairs(output, variant, MOST):
        count += 1
        difference = np.abs(drawn - real) / 255
        alike = structural_similarity(drawn, real, full=True, **similarity.SSIM_SETTINGS)[1]
        found = np.stack([real, difference, 1 - alike])
        sums = found if sums is None else sums + found
        dark = page_tone(real) - real > INK
        ink, on_ink = ink + dark.mean(), on_ink + float(difference[dark].sum())
    assert sums is not None, "an output folder holds one picture at least"
    whole = float(sums[1].sum())
    mean, l1, dissimilarity = (sums / count).astype(np.float32)
    return ErrorMap(count, mean, l1, dissimilarity, ink / count, on_ink / whole if whole else 0.0)


def colour(plane: Plane, top: float) -> bytes:
    """A map as PNG: black is 0, white is `top` or more."""
    shades = matplotlib.colormaps[COLOURS](np.clip(plane / max(top, 1e-9), 0, 1), bytes=True)[..., :3]
    return _png(shades)


def gray(plane: Plane) -> bytes:
    """A gray picture as PNG."""
    return _png(np.rint(plane).clip(0, 255).astype(np.uint8))


def _png(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()
