"""Specks: small black spots on light skin or paper, which a network leaves and an artist does not."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from dist_sketch.metrics.gray import gray

DARK, LIGHT = 60, 140  # gray levels: a speck is darker than the first, all around it is at least as light as the second
SIDE = 128  # px of a picture; lengths and areas below are those at this size, and grow with it
AREA = 12  # largest speck, in px^2
SOFT, RING = 1, 2  # px: the width of its soft edge, which may have any tone, and of the light ring around that
SPECKS_SETTINGS = {"darker_than": DARK, "ring_from": LIGHT, "at_px": SIDE, "largest_px": AREA, "ring_px": RING}
SQUARE = np.ones((3, 3), bool)  # diagonal neighbours touch, too


def specks(image: Tensor | NDArray[Any]) -> int:
    """The number of specks: connected dark spots of few pixels with a ring around them that is light everywhere.

    Real sketches have hardly any: among the 105 of the validation split of `fs2k_lines`, at 128 px, 2 have one.

    Args:
        image: uint8 (1 or 3, H, W) or (H, W); RGB is reduced to gray first.
    """
    plane = gray(image)
    scale = (plane.size / SIDE**2) ** 0.5
    soft, ring = max(1, round(SOFT * scale)), max(1, round(RING * scale))
    spots, _ = ndimage.label(plane < DARK, SQUARE)
    areas = np.bincount(spots.ravel())
    found = 0
    for number, place in enumerate(ndimage.find_objects(spots), 1):
        if areas[number] > AREA * scale**2:
            continue
        near = tuple(slice(max(0, s.start - soft - ring), s.stop + soft + ring) for s in place)
        inside = ndimage.binary_dilation(spots[near] == number, SQUARE, iterations=soft)
        around = ndimage.binary_dilation(inside, SQUARE, iterations=ring) & ~inside
        found += bool(plane[near][around].min() >= LIGHT)
    return found
