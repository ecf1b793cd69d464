"""Choice of the noise removal: candidates are compared on training pairs."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from dist_sketch.core.config import DenoiseConfig, Filter
from dist_sketch.metrics import similarity
from dist_sketch.model.denoise import Array, denoise, despeckle, page_tone, planes_of

STRENGTHS = (0.25, 0.5, 1.0, 2.0)
TRIALS = 4  # most candidates for which the distance is computed
NOTHING = DenoiseConfig(filter="none", shadows=False)  # but gray


def calibrate(
    raw: list[Tensor], real: list[Tensor], distance: Callable[[list[Tensor]], float] | None = None
) -> tuple[DenoiseConfig, list[dict[str, Any]]]:
    """Chooses filter, strength and shadow removal for a generator by its drawings of TRAINING pairs.

    Candidates are no filter, and each filter at four strengths, with and without shadow removal. A candidate is allowed
    if its mean SSIM is not below that of gray alone, of its shadow removal alone and of its filter alone: neither
    filter nor shadow removal may lower the SSIM. Of the allowed candidates the one whose noise statistics are nearest
    to those of the real sketches is taken; within 5 % of the nearest, the one with the best SSIM. If its `distance` is
    larger than that of gray alone, the next one is tried (of another filter, or weaker), at most TRIALS times.

    Args:
        raw: the generator's drawings, uint8 (3 or 1, H, W), all of one size.
        real: the sketches of the same pairs, in the same order; two or more.
        distance: of drawings, uint8 (3 or 1, H, W), from the real sketches, such as KID; None: not used.

    Returns:
        The settings, and a row for each candidate: filter, strength, shadows, ssim (in gray), noise_distance (of
        `noise_features`, in standard deviations of the real sketches), distance (None where it was not computed),
        allowed, chosen. The first row is gray alone.
    """
    truth = [denoise(i, NOTHING) for i in real]
    features = np.array([_features_of(t) for t in truth])
    mean, spread = features.mean(axis=0), features.std(axis=0).clip(0.1)
    choices: list[tuple[Filter, float]] = [("none", 1.0), *itertools.product(get_args(Filter)[1:], STRENGTHS)]
    rows: list[dict[str, Any]] = []
    scores = {}
    for name, strength in choices:
        filtered = [denoise(i, DenoiseConfig(filter=name, strength=strength, shadows=False)) for i in raw]
        for shadows in (False, True):
            clean = [denoise(i, DenoiseConfig(filter="none", shadows=shadows)) for i in filtered]
            ssim = float(np.mean([similarity.ssim(c, t) for c, t in zip(clean, truth, strict=True)]))
            moved = (np.mean([_features_of(c) for c in clean], axis=0) - mean) / spread
            scores[name, strength, shadows] = ssim
            parts_alone = scores["none", 1.0, False], scores["none", 1.0, shadows], scores[name, strength, False]
            row: dict[str, Any] = {"filter": name, "strength": strength, "shadows": shadows, "ssim": ssim}
            row |= {"noise_distance": float(np.sqrt(np.mean(moved**2))), "distance": None}
            rows.append(row | {"allowed": ssim >= max(parts_alone)})
    best = _best(rows, raw, distance)
    return _settings(best), [r | {"chosen": r is best} for r in rows]


def _best(
    rows: list[dict[str, Any]], raw: list[Tensor], distance: Callable[[list[Tensor]], float] | None
) -> dict[str, Any]:
    """The candidate to take; marks those as not allowed that `distance` rules out."""
    plain = rows[0]  # gray alone is always allowed
    left = [r for r in rows if r["allowed"]]
    for _ in range(TRIALS):
        close = 1.05 * min(r["noise_distance"] for r in left)
        best = max((r for r in left if r["noise_distance"] <= close), key=lambda r: r["ssim"])
        if best is plain or distance is None:
            return best
        for row in (plain, best):
            if row["distance"] is None:
                row["distance"] = distance([denoise(i, _settings(row)) for i in raw])
        if best["distance"] <= plain["distance"]:
            return best
        best["allowed"] = False
        # Stronger settings of the same filter would only use up the trials.
        left = [r for r in left if r is plain or r["filter"] != best["filter"] or r["strength"] < best["strength"]]
    return plain


def _settings(row: dict[str, Any]) -> DenoiseConfig:
    return dataclasses.replace(NOTHING, **{k: row[k] for k in ("filter", "strength", "shadows")})


def _features_of(image: Tensor) -> NDArray[np.float64]:
    return noise_features(planes_of(image, True)[0])


def noise_features(plane: Array) -> NDArray[np.float64]:
    """Statistics that noise changes, as logarithms (3, 4): power in 4 bands of frequency, specks, tone at the edges."""
    height, width = plane.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    power = np.abs(np.fft.rfft2((plane - plane.mean()) * window)) ** 2 / window.sum()
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    ring = np.minimum((radius / 0.7072 * 6).astype(int), 5)
    rings = ndimage.mean(np.log(power + 1e-3), ring, np.arange(2, 6))  # the two lowest bands hold the picture itself
    residual = np.abs(plane - ndimage.median_filter(plane, size=3, mode="nearest"))
    isolated = np.abs(plane - despeckle(plane, 2.0))
    specks = [np.log((a > t).mean() + e) for a, e in ((residual, 1e-3), (isolated, 1e-4)) for t in (8, 32)]
    depth = page_tone(plane) - plane
    edges = [np.log(max(float(np.rot90(depth, k)[: max(2, height // 32)].mean()), 0) + 4) for k in range(4)]
    return np.array([rings, specks, edges])
