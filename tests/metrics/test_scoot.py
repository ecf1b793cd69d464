"""SCOOT equals a plain second implementation of the authors' MATLAB code, and ranks pictures as an eye does."""

from collections.abc import Callable
from itertools import pairwise
from math import floor, sqrt

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from dist_sketch.data import pixels
from dist_sketch.data.synthetic import dataset as synthetic
from dist_sketch.metrics.gray import gray
from dist_sketch.metrics.scoot import features, scoot
from dist_sketch.metrics.similarity import ssim

Plane = NDArray[np.uint8]
OFFSETS = ((0, 1), (-1, 1), (-1, 0), (-1, -1))  # MATLAB's: row, column of the neighbour


def plain_features(plane: Plane) -> list[float]:
    """Pixel by pixel, as one would write it down from MATLAB's manual."""
    height, width = plane.shape
    tones = [[min(floor(6 * int(v) / 255), 5) for v in row] for row in plane]
    found = []
    for top, bottom in ((floor(height * k / 4), floor(height * (k + 1) / 4)) for k in range(4)):
        for left, right in ((floor(width * k / 4), floor(width * (k + 1) / 4)) for k in range(4)):
            counts = [[0] * 6 for _ in range(6)]
            for y in range(top, bottom):
                for x in range(left, right):
                    for down, over in OFFSETS:
                        if top <= y + down < bottom and left <= x + over < right:
                            counts[tones[y][x]][tones[y + down][x + over]] += 1
            mean = [[floor(c / 4 + 0.5) for c in row] for row in counts]
            total = sum(map(sum, mean))
            found.append(sum(mean[i][j] / total * (i - j) ** 2 for i in range(6) for j in range(6)))
            found.append(sum((mean[i][j] / total) ** 2 for i in range(6) for j in range(6)))
    return found


def pictures() -> dict[str, Plane]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (50, 43), dtype=np.uint8)  # not a multiple of 4
    slope = np.add.outer(np.arange(48), 3 * np.arange(64)).astype(np.uint8)  # not symmetric
    return {"noise": noise, "slope": slope, "black": np.zeros((64, 64), np.uint8), "sketch": sketch(1)}


def sketch(number: int, side: int = 1) -> Plane:
    """Of synthetic face `number`, 64 px; side 0: its line."""
    return pixels.from_image(synthetic.draw(0, number, 64)[side], 1)[0].numpy()


@pytest.mark.parametrize("name", pictures())
def test_features_are_those_of_a_plain_second_implementation(name: str) -> None:
    plane = pictures()[name]
    assert features(plane) == pytest.approx(plain_features(plane), rel=1e-12)


def test_the_score_is_that_of_the_second_implementation() -> None:
    a, b = sketch(1), sketch(2)
    squares = sum((x - y) ** 2 for x, y in zip(plain_features(a), plain_features(b), strict=True))
    assert scoot(a, b) == pytest.approx(1 / (1 + sqrt(squares)), rel=1e-12)
    assert scoot(a, b) == scoot(b, a) < 1 == scoot(a, a)


def test_it_ranks_as_an_eye_does() -> None:
    """Real strokes a pixel aside are nearly the real sketch; blurred, with no stroke left, they are not. SSIM errs."""
    ways: dict[str, Callable[[Plane], Plane]] = {
        "moved": lambda real: np.roll(real, 1, axis=1),
        "blurred": lambda real: gaussian_filter(real, 1.0),
        "blank": lambda real: np.full_like(real, 255),
    }
    real = [sketch(i) for i in range(8)]
    moved, blurred, blank = (np.mean([scoot(way(r), r) for r in real]) for way in ways.values())
    other = np.mean([scoot(r, another) for r, another in pairwise(real)])
    assert moved > 2 * blurred
    assert moved > other + 0.2
    assert other > blank + 0.1
    assert np.mean([ssim(ways["moved"](r), r) - ssim(ways["blurred"](r), r) for r in real]) < -0.1


def test_rgb_is_reduced_to_luma() -> None:
    image = torch.randint(0, 256, (3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    luma = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
    assert np.abs(gray(image).astype(int) - luma).max() <= 1  # Pillow rounds the three weights
    assert gray(image).dtype == np.uint8
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    for channels in (1, 3):
        assert (gray(every.expand(channels, -1, -1)) == every[0].numpy()).all()
    assert scoot(image, image.flip(0)) < 1  # other colours are other tones
