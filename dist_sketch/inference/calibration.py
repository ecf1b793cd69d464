"""Choice of the noise removal: candidates are compared on training pairs."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import structural_similarity
from torch import Tensor

from dist_sketch.core.config import DenoiseConfig, Filter
from dist_sketch.core.errors import UserError
from dist_sketch.inference.denoise import Array, denoise, despeckle, page_tone, planes_of

STRENGTHS = (0.25, 0.5, 1.0, 2.0)  # that calibration tries


TRIALS = 4  # candidates that it asks for their distance at most


def calibrate(
    raw: list[Tensor],
    real: list[Tensor],
    base: DenoiseConfig | None = None,
    tolerance: float = 0.0,
    distance: Callable[[list[Tensor]], float] | None = None,
) -> tuple[DenoiseConfig, list[dict[str, Any]]]:
    """Chooses filter, strength and shadows for a generator by its outputs on TRAINING pairs.

    Candidates: no filter and each filter at four strengths, shadows on and off (off only if `base` has them off).
    A candidate is allowed if its mean SSIM is, less `tolerance`, no worse than gray alone, than itself without the
    filter and than itself without shadows: neither part may live on what the other gains. Of the allowed ones that
    whose noise statistics are nearest to the real sketches' is taken (within 5 %: the better SSIM), unless it lies
    farther from the real sketches by `distance` than gray alone: then the next one, TRIALS in all, of another filter or
    a weaker one. If every filter harms, all is off but gray.

    Args:
        raw: the generator's outputs, uint8 (3 or 1, H, W), all of one size; UserError if they do not match `real`.
        real: the sketches of the same pairs, in the same order; two or more.
        base: gives `gray`, and with `shadows=False` forbids them.
        distance: of pictures, uint8 (3 or 1, H, W), from the real sketches, as KID is one; None: not asked.

    Returns:
        The settings, and a row for each candidate: filter, strength, shadows, ssim (in gray), noise_distance (of
        `noise_features`, in standard deviations of the real sketches), distance (None where it was not asked), allowed,
        chosen. The first is gray alone.
    """
    base = (base or DenoiseConfig()).check()
    sizes = sorted({tuple(i.shape[1:]) for i in [*raw, *real]})
    if len(raw) != len(real) or len(raw) < 2 or len(sizes) > 1:
        got = f"{len(raw)} outputs, {len(real)} sketches, sizes {sizes}"
        raise UserError(f"denoise: calibration needs 2 pairs or more, of one size; got {got}")
    truth = [planes_of(i, True)[0] for i in real]
    features = np.array([noise_features(t) for t in truth])
    mean, spread = features.mean(axis=0), features.std(axis=0).clip(0.1)
    choices: list[tuple[Filter, float]] = [("none", 1.0), *itertools.product(get_args(Filter)[1:], STRENGTHS)]
    rows, scores = [], {}
    for name, strength in choices:
        filtered = [denoise(i, DenoiseConfig(filter=name, strength=strength, shadows=False)) for i in raw]
        for shadows in (False, True)[: 1 + base.shadows]:
            planes = [planes_of(denoise(i, DenoiseConfig(filter="none", shadows=shadows)), True)[0] for i in filtered]
            pairs = zip(planes, truth, strict=True)
            ssim = float(np.mean([structural_similarity(p, t, data_range=255) for p, t in pairs]))
            moved = (np.mean([noise_features(p) for p in planes], axis=0) - mean) / spread
            scores[name, strength, shadows] = ssim
            without = scores["none", 1.0, False], scores["none", 1.0, shadows], scores[name, strength, False]
            row: dict[str, Any] = {"filter": name, "strength": strength, "shadows": shadows, "ssim": ssim}
            row |= {"noise_distance": float(np.sqrt(np.mean(moved**2))), "distance": None}
            rows.append(row | {"allowed": ssim >= max(without) - tolerance})
    best = _best(rows, base, raw, distance)
    rows = [r | {"chosen": r is best} for r in rows]
    return _settings(base, best), rows


def _best(
    rows: list[dict[str, Any]],
    base: DenoiseConfig,
    raw: list[Tensor],
    distance: Callable[[list[Tensor]], float] | None,
) -> dict[str, Any]:
    """The candidate to take; those that `distance` rules out are no longer allowed."""
    plain = rows[0]  # gray alone is always allowed
    left = [r for r in rows if r["allowed"]]
    for _ in range(TRIALS):
        close = 1.05 * min(r["noise_distance"] for r in left)
        best = max((r for r in left if r["noise_distance"] <= close), key=lambda r: r["ssim"])
        if best is plain or distance is None:
            return best
        for row in (plain, best):
            if row["distance"] is None:
                row["distance"] = distance([denoise(i, _settings(base, row)) for i in raw])
        if best["distance"] <= plain["distance"]:
            return best
        best["allowed"] = False
        # More of the same would only take the others' turns
        left = [r for r in left if r is plain or r["filter"] != best["filter"] or r["strength"] < best["strength"]]
    return plain


def _settings(base: DenoiseConfig, row: dict[str, Any]) -> DenoiseConfig:
    return dataclasses.replace(base, **{k: row[k] for k in ("filter", "strength", "shadows")})


def noise_features(plane: Array) -> NDArray[np.float64]:
    """What noise changes, as logarithms, shape (3, 4): power in 4 rings of frequency, specks, tone along the edges."""
    height, width = plane.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    power = np.abs(np.fft.rfft2((plane - plane.mean()) * window)) ** 2 / window.sum()
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    ring = np.minimum((radius / 0.7072 * 6).astype(int), 5)
    rings = ndimage.mean(np.log(power + 1e-3), ring, np.arange(2, 6))  # the two lowest hold the picture itself
    residual = np.abs(plane - ndimage.median_filter(plane, size=3, mode="nearest"))
    isolated = np.abs(plane - despeckle(plane, 2.0))
    specks = [np.log((a > t).mean() + e) for a, e in ((residual, 1e-3), (isolated, 1e-4)) for t in (8, 32)]
    depth = page_tone(plane) - plane
    edges = [np.log(max(float(np.rot90(depth, k)[: max(2, height // 32)].mean()), 0) + 4) for k in range(4)]
    return np.array([rings, specks, edges])
