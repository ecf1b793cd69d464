"""A clean line picture as a person might have drawn it: an augmentation for networks that shall read anyone's lines.

The strokes are drawn anew from the distance of each pixel to the nearest line, so that their width, wobble and
pressure can be chosen and they stay smooth. Nothing here imports torch, because the processes of a pool start with it.
"""

import hashlib
import io
import math
from functools import cache

import numpy as np
import scipy  # it imports its parts when they are used, which takes a while
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

PAGE = 256  # all lengths below are pixels on a page of this side, and scale with the real one
DARK = 0.35  # a pixel belongs to a line if it has this share of the darkest one's ink


def version(line: Pixels, seed: int, number: int, key: str) -> Pixels:
    """The freehand version `number` of the line picture of the pair `key`; always the same one. See `freehand`."""
    digest = hashlib.sha256(f"{seed}/freehand {number}/{key}".encode()).digest()
    return freehand(line, np.random.default_rng(int.from_bytes(digest[:8], "little")))


def version_of_image(line: Image.Image, seed: int, number: int, key: str) -> Image.Image:
    """`version` of a Pillow image of mode "L" or "RGB"; returns mode "L"."""
    return Image.fromarray(version(np.asarray(line.convert("L"))[None], seed, number, key)[0])


def versions(line: Pixels, seed: int, count: int, key: str) -> Pixels:
    """The first `count` freehand versions of a line picture (C, H, W), as (count, C, H, W)."""
    return np.stack([version(line, seed, number, key) for number in range(count)])


def freehand(line: Pixels, random: Generator) -> Pixels:
    """Draws a line picture anew by an unsteady hand; some come out nearly clean.

    Args:
        line: dark lines on a white page, uint8 (C, H, W) with C 1 or 3.
        random: decides everything; its state is changed.

    Returns:
        uint8 (C, H, W), gray: all channels are equal.
    """
    channels, height, width = line.shape
    gray = line[0] if channels == 1 else np.asarray(Image.fromarray(line.transpose(1, 2, 0)).convert("L"))
    unit = min(height, width) / PAGE
    distance = _distance(gray, random)
    where = _unsteady(height, width, random)
    ink = _stroke(_at(distance, where), unit, random)
    if random.random() < 0.35:  # doubled strokes, in a part of the page
        beside = where + _wobble(height, width, 5, unit * random.uniform(2, 6), random)
        part = np.clip(4 * _field(height, width, 3, random) + random.uniform(-1, 1), 0, 1)
        ink = np.maximum(ink, part * random.uniform(0.5, 1) * _stroke(_at(distance, beside), unit, random))
    if random.random() < 0.5:
        ink *= _gaps(height, width, random)
    page = _paper(height, width, random) * (1 - _tone(ink, unit, random))
    drawn = np.clip(page + 0.5, 0, 255).astype(np.uint8)
    if random.random() < 0.4:
        drawn = _jpeg(drawn, int(random.integers(30, 91)))
    return np.repeat(drawn[None], channels, 0)


def _distance(gray: Pixels, random: Generator) -> Floats:
    """Distance to the nearest line in pixels of `gray`, (n * H, n * W): small pages are enlarged n times, to 256 px.

    Stray strokes are lines as the others, so they come out of the same pen.
    """
    finer = max(1, round(PAGE / min(gray.shape)))
    height, width = (finer * side for side in gray.shape)
    ink = 255.0 - np.asarray(Image.fromarray(gray).resize((width, height), Image.Resampling.BILINEAR), np.float32)
    lines = ink > DARK * max(float(ink.max()), 64.0)  # an empty page has no lines
    if random.random() < 0.3:
        for _ in range(random.integers(1, 4)):
            rows, columns = _stray(height, width, random)
            lines[rows, columns] = True
    if not lines.any():
        return np.full((height, width), float(PAGE), np.float32)
    distance = scipy.ndimage.distance_transform_edt(~lines).astype(np.float32)
    # The blur takes away the stairs of slanted lines. It also lifts the valley in the middle of a line, by 0.45 pixels.
    return (scipy.ndimage.gaussian_filter(distance, 0.7) - 0.45) / finer


def _stray(height: int, width: int, random: Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of a short curve that means nothing: a Bezier curve of second order."""
    start = random.uniform(0.1, 0.9, 2)
    middle = start + random.uniform(-0.15, 0.15, 2)
    end = middle + random.uniform(-0.15, 0.15, 2)
    t = np.linspace(0, 1, height + width)[:, None]
    curve = ((1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end) * (height, width)
    rows, columns = curve[((curve >= 0) & (curve < (height, width))).all(1)].astype(np.intp).T
    return rows, columns


def _unsteady(height: int, width: int, random: Generator) -> Floats:
    """Which place of the clean page each pixel shows, (2, H, W): shifted, scaled, turned a little, and wobbling."""
    rows = np.arange(height, dtype=np.float32)[:, None] - height / 2
    columns = np.arange(width, dtype=np.float32)[None, :] - width / 2
    unit = min(height, width) / PAGE
    turn, down, right = random.uniform(-1, 1, 3) * (math.radians(1.5), 4 * unit, 4 * unit)
    tall, wide = random.uniform(0.98, 1.02, 2)
    down, right = down + height / 2, right + width / 2
    where = np.stack([rows * tall + columns * turn + down, columns * wide - rows * turn + right]).astype(np.float32)
    where += _wobble(height, width, 6, unit * random.uniform(0, 3), random)  # wrong proportions
    where += _wobble(height, width, 20, unit * random.uniform(0, 1.2), random)  # a trembling hand
    return where


def _wobble(height: int, width: int, cells: int, most: float, random: Generator) -> Floats:
    """A displacement of each pixel by up to `most` pixels along both sides, (2, H, W)."""
    return np.float32(most) * np.stack([_field(height, width, cells, random) for _ in "yx"])


def _field(height: int, width: int, cells: int, random: Generator) -> Floats:
    """A smooth random field (H, W) with values in -1..1, mostly near 0, that changes sign about `cells` times a side.

    It is a uniform cubic B-spline with random coefficients. Sparse products use one thread and add in a fixed order;
    numpy's dense ones would start threads in each of many processes.
    """
    coefficients = random.uniform(-1, 1, (cells + 3, cells + 3))
    field = _spline(height, cells) @ (_spline(width, cells) @ coefficients).T
    return np.clip(1.5 * field, -1, 1).astype(np.float32)


@cache
def _spline(length: int, cells: int) -> "scipy.sparse.csr_array":
    """Weight of each of `cells` + 3 coefficients at each pixel of a side, (length, cells + 3)."""
    place = (np.arange(length) + 0.5) * (cells / length)
    cell = place.astype(np.intp)
    t = place - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    columns = cell[:, None] + np.arange(4)
    return scipy.sparse.csr_array((weights.ravel(), columns.ravel(), 4 * np.arange(length + 1)), (length, cells + 3))


def _at(distance: Floats, where: Floats) -> Floats:
    """`distance` at the places `where` of the page, (2, H, W)."""
    finer = len(distance) // where.shape[1]  # pixels of `distance` along one of the page
    found: Floats = scipy.ndimage.map_coordinates(distance, (where + 0.5) * finer - 0.5, order=1, mode="nearest")
    return found


def _stroke(distance: Floats, unit: float, random: Generator) -> Floats:
    """Ink 0..1 of strokes along the lines; their width changes over the page as a hand's pressure does."""
    height, width = distance.shape
    pressure = 1 + random.uniform(0, 0.5) * _field(height, width, 8, random)
    wide = unit * random.uniform(1, random.choice((1.5, 2.5, 3.5, 5.0))) * pressure
    # How much of a pixel a straight stroke covers; one thinner than a pixel never covers all of it.
    return np.clip(wide / 2 + 0.5 - distance, 0, np.minimum(wide, 1)).astype(np.float32)


def _gaps(height: int, width: int, random: Generator) -> Floats:
    """What is left of the ink, 0..1: the pen was lifted, or pressed lightly, here and there."""
    field = _field(height, width, int(random.integers(12, 33)), random)
    return np.clip((field + random.uniform(0.3, 0.9)) * random.uniform(3, 12), random.choice((0.0, 0.3)), 1)


def _tone(ink: Floats, unit: float, random: Generator) -> Floats:
    """The ink 0..1 as it looks on paper: of a black pen, or of a softer and paler pencil with grain."""
    if random.random() < 0.5:
        return np.float32(random.uniform(0.85, 1)) * ink
    pale = random.uniform(0.4, 0.9) * (1 + 0.3 * _field(ink.shape[0], ink.shape[1], 6, random))
    soft = scipy.ndimage.gaussian_filter(ink, unit * random.uniform(0.3, 1.2))
    grain = 1 - np.float32(random.uniform(0, 0.5)) * random.random(ink.shape, np.float32)
    return np.clip(pale * soft * grain, 0, 1)


def _paper(height: int, width: int, random: Generator) -> Floats:
    """The empty page, gray values (H, W): white, or a darker paper under uneven light."""
    if random.random() < 0.5:
        return np.full((height, width), 255, np.float32)
    down, right = random.uniform(-6, 6, 2)
    slope = down * np.linspace(-1, 1, height)[:, None] + right * np.linspace(-1, 1, width)[None, :]
    return (random.uniform(230, 255) + slope).astype(np.float32)


def _jpeg(gray: Pixels, quality: int) -> Pixels:
    """`gray` (H, W) with the traces of JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer, formats=["JPEG"]) as image:
        return np.asarray(image)
