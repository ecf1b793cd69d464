"""How alike two images are: SSIM, L1, PSNR."""

import numpy as np
from skimage.metrics import structural_similarity
from torch import Tensor

SSIM_SETTINGS = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


PSNR_CAP = 100.0  # dB; what equal images get, so that a mean exists. One level in one value of 128 px RGB is 95 dB.


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of two uint8 (1 or 3, H, W) images, 1 for equal ones; SSIM_SETTINGS (Wang et al. 2004).

    The mean over the channels; gray repeated to RGB gives the number of the gray image.
    """
    if _is_gray(a) and _is_gray(b):
        a, b = a[:1], b[:1]  # the same number in a third of the time
    return float(structural_similarity(a.cpu().numpy(), b.cpu().numpy(), channel_axis=0, **SSIM_SETTINGS))


def _is_gray(image: Tensor) -> bool:
    return bool((image == image[:1]).all())


def l1(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference of two uint8 images on the scale [0, 1]: half of the training loss's, on [-1, 1]."""
    return (a.double() - b.double()).abs().mean().item() / 255


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB, at most PSNR_CAP (equal images would be infinite)."""
    error = (a.double() - b.double()).square().mean().item()
    return PSNR_CAP if error == 0 else min(PSNR_CAP, 10 * float(np.log10(255**2 / error)))
