"""How similar two images are: SSIM, L1, PSNR."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

SSIM_SETTINGS = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
PSNR_CAP = 100.0  # dB, for equal images, so that a mean exists; one level in one value of 128 px RGB gives 95 dB


def ssim(a: Tensor | NDArray[Any], b: Tensor | NDArray[Any]) -> float:
    """Structural similarity (Wang et al. 2004, SSIM_SETTINGS), 1 for equal images; the mean over the channels.

    Args:
        a: image (1 or 3, H, W) or plane (H, W), values in [0, 255]; at least 11 px in height and width.
        b: of the same shape and type.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim == 3 and (a == a[:1]).all() and (b == b[:1]).all():
        a, b = a[0], b[0]  # gray repeated to RGB: the same number in a third of the time
    return float(structural_similarity(a, b, channel_axis=0 if a.ndim == 3 else None, **SSIM_SETTINGS))


def ssim_map(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """SSIM at each pixel of two planes (H, W) in [0, 255], with the settings of `ssim`."""
    found: NDArray[Any] = structural_similarity(a, b, full=True, **SSIM_SETTINGS)[1]
    return found


def l1(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference of two uint8 images in [0, 1]: half of the training loss, which is in [-1, 1]."""
    return (a.double() - b.double()).abs().mean().item() / 255


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB, at most PSNR_CAP (equal images would be infinite)."""
    error = (a.double() - b.double()).square().mean().item()
    return PSNR_CAP if error == 0 else min(PSNR_CAP, 10 * float(np.log10(255**2 / error)))
