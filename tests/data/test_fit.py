"""Pages that are not square: where they lie in the square, in which tone their margins are, and their way back."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from dist_sketch.data import pixels
from dist_sketch.data.fit import cut, fitted, placed, shape, with_plain_margins

SIZE = 64
BICUBIC = Image.Resampling.BICUBIC


def page(width: int, height: int, paper: int = 230) -> Image.Image:
    """Gray paper with a dark bar in the middle that touches the left border."""
    levels = np.full((height, width), paper, np.uint8)
    levels[height // 3 : height // 2, : width // 2] = 20
    return Image.fromarray(levels)


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_squash_is_a_plain_resize() -> None:
    image = page(50, 90)
    assert fitted(image, image.size, SIZE, "squash").tobytes() == image.resize((SIZE, SIZE), BICUBIC).tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(40, 80), (90, 31), (333, 1), (64, 64)])
def test_pad_keeps_the_whole_page_between_margins_in_its_own_tone(mode: str, size: tuple[int, int]) -> None:
    image = page(*size).convert(mode)
    left, top, width, height = placed(size, SIZE)
    assert max(width, height) == SIZE
    assert abs(width / height - size[0] / size[1]) < 0.5 or min(width, height) == 1
    padded = fitted(image, size, SIZE, "pad")
    assert (padded.mode, padded.size) == (mode, (SIZE, SIZE))
    assert (
        padded.crop((left, top, left + width, top + height)).tobytes()
        == image.resize((width, height), BICUBIC).tobytes()
    )
    margins = np.ones((SIZE, SIZE), bool)
    margins[top : top + height, left : left + width] = False
    assert abs(margins[:, :left].sum() - margins[:, left + width :].sum()) <= SIZE  # in the middle, to a pixel
    if min(size) > 1:
        assert (levels(padded)[margins] == 230).all()


def test_crop_takes_the_square_in_the_middle() -> None:
    image = page(90, 50)
    middle = image.crop((20, 0, 70, 50))
    assert np.abs(levels(fitted(image, image.size, 50, "crop")) - levels(middle)).max() == 0


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
def test_a_sketch_is_laid_out_as_its_line(fit: str) -> None:
    """Both show the same strokes, but the sketch's file is three times as large, or has another shape."""
    line = page(60, 100)
    for sketch in (line.resize((180, 300)), line.resize((100, 100))):
        laid_out = (levels(fitted(i, line.size, SIZE, fit)) for i in (line, sketch))  # type: ignore[arg-type]
        first, second = laid_out
        assert np.abs(first - second).mean() < 5


def test_inverted_pages_have_the_margins_of_paper() -> None:
    inverted = ImageOps.invert(page(40, 80))
    expected = fitted(page(40, 80), (40, 80), SIZE, "pad")
    assert fitted(inverted, (40, 80), SIZE, "pad", invert=True).tobytes() == expected.tobytes()


def test_the_page_comes_out_of_the_square_again() -> None:
    square = pixels.from_image(fitted(page(40, 80), (40, 80), SIZE, "pad"), 3)
    inner = cut(square, (40, 80), "pad")
    assert inner.shape == (3, 64, 32)
    drawn = square.clone()
    drawn[:, :, :16] = 7  # what a network draws beside the page
    assert with_plain_margins(drawn, (40, 80), "pad").equal(square)
    assert drawn[0, 0, 0] == 7
    for fit in ("squash", "crop"):
        assert cut(drawn, (40, 80), fit).equal(drawn)
        assert with_plain_margins(drawn, (40, 80), fit).equal(drawn)


@pytest.mark.parametrize(
    ("fit", "px", "expected"),
    [
        ("squash", 64, (64, 64)),
        ("squash", None, (40, 80)),
        ("pad", 64, (32, 64)),
        ("pad", None, (40, 80)),
        ("crop", 64, (64, 64)),
        ("crop", None, (40, 40)),
    ],
)
def test_shapes_of_drawings(fit: str, px: int | None, expected: tuple[int, int]) -> None:
    assert shape((40, 80), px, fit) == expected  # type: ignore[arg-type]
