"""The gray picture that scores of pencil and paper are computed on."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def gray(image: Tensor | NDArray[Any]) -> NDArray[np.uint8]:
    """Luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, rounded: what MATLAB's rgb2gray and Pillow's "L" give.

    Gray that is repeated to RGB comes back as it was.

    Args:
        image: uint8 (1 or 3, H, W) or (H, W).

    Returns:
        uint8 (H, W).
    """
    values = np.asarray(image)
    if values.ndim == 2 or len(values) == 1:
        return values.reshape(values.shape[-2:])
    return np.rint(values[0] * 0.299 + values[1] * 0.587 + values[2] * 0.114).astype(np.uint8)
