"""A speck is small, black and alone on something light; its size grows with the picture."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dist_sketch.metrics.specks import specks

Plane = NDArray[np.uint8]


def page(*spots: tuple[int, int, int, int], tone: int = 30, paper: int = 200) -> Plane:
    """128 px of light paper with rectangles (row, column, height, width) of one tone."""
    plane = np.full((128, 128), paper, np.uint8)
    for row, column, height, width in spots:
        plane[row : row + height, column : column + width] = tone
    return plane


@pytest.mark.parametrize(
    ("plane", "count"),
    [
        (page(), 0),
        (page((40, 50, 1, 1)), 1),
        (page((40, 50, 3, 4)), 1),
        (page((40, 50, 1, 13)), 0),  # a stroke
        (page((40, 50, 4, 4)), 0),  # a pupil
        (page((40, 50, 1, 1), (41, 51, 1, 1)), 1),  # they touch at a corner
        (page((40, 50, 2, 2), (80, 20, 1, 3), (100, 90, 3, 1)), 3),
        (page((40, 50, 2, 2), (40, 54, 20, 1)), 0),  # beside a stroke
        (page((40, 50, 2, 2), (40, 56, 20, 1)), 1),  # far enough from it
        (page((0, 0, 2, 2), (126, 126, 2, 2)), 2),  # in corners
        (page((40, 50, 2, 2), tone=60), 0),  # not dark
        (page((40, 50, 2, 2), paper=139), 0),  # not on light paper
        (page((40, 50, 2, 2), tone=59, paper=140), 1),
        (np.zeros((128, 128), np.uint8), 0),
        (np.zeros((3, 3), np.uint8), 0),
    ],
)
def test_what_counts(plane: Plane, count: int) -> None:
    assert specks(plane) == count
    turned = np.rot90(plane)
    assert specks(np.ascontiguousarray(turned)) == count
    assert specks(torch.from_numpy(plane).expand(3, -1, -1)) == count


def test_a_soft_edge_is_no_ink_beside_it() -> None:
    plane = page((39, 49, 4, 4), tone=100)  # a rim of one pixel
    plane[40:42, 50:52] = 20
    assert specks(plane) == 1
    plane[38, 48] = 139
    assert specks(plane) == 0


@pytest.mark.parametrize("times", [2, 4])
def test_a_larger_picture_has_the_same_specks(times: int) -> None:
    plane = page((40, 50, 3, 4), (80, 20, 2, 2), (100, 90, 4, 4), (20, 20, 2, 2), (20, 25, 20, 2))
    larger = plane.repeat(times, axis=0).repeat(times, axis=1)
    assert specks(larger) == specks(plane) == 3


def test_half_the_size() -> None:
    assert specks(page((40, 50, 6, 4))[::2, ::2]) == 0
    assert specks(page((40, 50, 6, 2))[::2, ::2]) == 1
