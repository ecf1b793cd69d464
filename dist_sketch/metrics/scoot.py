"""SCOOT, a score made for sketches of faces: it compares how tones lie beside each other, not pixel by pixel."""

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.feature import graycomatrix
from torch import Tensor

from dist_sketch.metrics.gray import gray

LEVELS, BLOCKS = 6, 4  # tones; blocks a side
SCOOT_SETTINGS = {"levels": LEVELS, "blocks": BLOCKS**2, "distance": 1, "features": "contrast, sum of squares"}


def scoot(drawn: Tensor | NDArray[Any], real: Tensor | NDArray[Any]) -> float:
    """Structure co-occurrence texture (Fan et al. 2019, "Scoot: A Perceptual Metric for Facial Sketches").

    1 / (1 + Euclidean distance of the two pictures' `features`): 1 for equal pictures, and near 1 also for strokes that
    lie a pixel beside the real ones; people rank sketches much as it does. It follows the MATLAB code of its authors.

    Args:
        drawn: uint8 (1 or 3, H, W) or (H, W), at least 8 px in height and width; RGB is reduced to gray first.
        real: of the same shape.
    """
    return float(1 / (1 + np.linalg.norm(features(gray(drawn)) - features(gray(real)))))


def features(plane: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Contrast and energy of the tones beside each other in each of 4 x 4 blocks.

    The tones are reduced to 6. A block's matrix counts how often tone j lies beside tone i, to the right, above, and
    above to the left and right; it is the mean of these four directions, rounded half up. Energy is the sum of its
    squares, as in the authors' code (scikit-image calls that ASM, and its square root energy).

    Args:
        plane: uint8 (H, W).

    Returns:
        float64 (32,), block by block, row by row.
    """
    tones = np.minimum(plane.astype(np.int64) * LEVELS // 255, LEVELS - 1).astype(np.uint8)
    rows, columns = (np.arange(BLOCKS + 1) * side // BLOCKS for side in tones.shape)
    contrast = np.subtract.outer(np.arange(LEVELS), np.arange(LEVELS)) ** 2
    found = []
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            block = tones[top:bottom, left:right]
            counts = graycomatrix(block, [1], np.arange(4) * np.pi / 4, LEVELS)[:, :, 0].astype(np.float64)
            counts[:, :, 1:] = counts[:, :, 1:].transpose(1, 0, 2).copy()  # these look down, MATLAB's look up
            shares = np.floor(counts.mean(axis=2) + 0.5)
            shares /= shares.sum()
            found += [(shares * contrast).sum(), (shares**2).sum()]
    return np.array(found)
