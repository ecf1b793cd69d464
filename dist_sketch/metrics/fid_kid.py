"""Distances between two sets of images by their Inception features: FID and KID."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def frechet(x: Array, y: Array) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (Heusel et al. 2017), in float64.

    With centred features X = Qx Rx and Y = Qy Ry, tr sqrt(Sx Sy) is the nuclear norm of Rx Ry^T / sqrt((n-1)(m-1)):
    no matrix square root, no squared condition number, and nothing larger than min(n, d) x min(m, d) to decompose.

    Args:
        x: features (n, d), n >= 2.
        y: features (m, d), m >= 2.

    Returns:
        0 or more, finite also where the covariances are singular or zero.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if min(len(x), len(y)) < 2:
        raise ValueError("a Fréchet distance needs at least two images on either side")
    shift = x.mean(0) - y.mean(0)
    rx, ry = _root(x), _root(y)
    mixed = np.linalg.svd(rx @ ry.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + (rx * rx).sum() + (ry * ry).sum() - 2 * mixed))


def _root(x: Array) -> Array:
    """R (min(n, d), d) with R^T R = the unbiased covariance of x (n, d)."""
    centred = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    if len(x) <= x.shape[1]:
        return centred
    return np.asarray(np.linalg.qr(centred, mode="r"))


def kid(x: Array, y: Array, block: int = 512) -> float:
    """Kernel Inception distance: unbiased MMD^2 with the kernel (a.b / d + 1)^3 (Bińkowski et al. 2018), full sets.

    Args:
        x: features (n, d), n >= 2.
        y: features (m, d), m >= 2.
        block: rows at a time; memory grows with block x (n + m).

    Returns:
        About 0 for two samples of one distribution; may be negative.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError("KID needs at least two images on either side")

    def total(a: Array, b: Array) -> float:
        return sum(float(((a[i : i + block] @ b.T / a.shape[1] + 1) ** 3).sum()) for i in range(0, len(a), block))

    def diagonal(a: Array) -> float:
        return float((((a * a).sum(1) / a.shape[1] + 1) ** 3).sum())

    within = (total(x, x) - diagonal(x)) / (n * (n - 1)) + (total(y, y) - diagonal(y)) / (m * (m - 1))
    return within - 2 * total(x, y) / (n * m)
