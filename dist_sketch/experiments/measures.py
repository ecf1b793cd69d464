"""Measures of a finished training, one number each, computed from its drawings, its log or its scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dist_sketch.core.saved import read_scores
from dist_sketch.inference.calibration import noise_features
from dist_sketch.model.denoise import NEIGHBOURS, page_tone
from dist_sketch.reports import error_map
from dist_sketch.tracking.tracker import read_metrics

Planes = NDArray[np.float32]  # (n, H, W), gray [0, 255]
Records = list[dict[str, Any]]

# The last epochs, as a share of all; at least two, because a timer of 2 alternates between two phases.
END = 0.2


def measure(name: str, run: Path, output: Path, variant: str) -> float | None:
    """One of `presets.MEASURES`; None if it cannot be computed.

    Args:
        run: a training's folder.
        output: what `infer` drew with it.
        variant: "raw" or "denoised" drawings; measures of the log do not depend on it.
    """
    if name in FROM_LOG:
        return FROM_LOG[name](read_metrics(run))
    if name in FROM_PICTURES:
        drawn, real = zip(*error_map.pairs(output, variant), strict=True)
        return FROM_PICTURES[name](np.stack(drawn), np.stack(real))
    value = (read_scores(output) or {}).get(variant, {}).get(name)
    return None if value is None else float(value)


def sharpness(drawn: Planes, real: Planes) -> float | None:
    """Mean magnitude of the tone's gradient, relative to the real sketches."""

    def gradient(planes: Planes) -> float:
        down, across = np.gradient(planes, axis=(1, 2))
        return float(np.hypot(down, across).mean())

    whole = gradient(real)
    return gradient(drawn) / whole if whole > 0 else None


def variety(drawn: Planes, real: Planes) -> float | None:
    """Root mean square distance between the drawings of two people, relative to that of their real sketches.

    0 means that all drawings are equal. The mean square over all pairs is twice the variance of each pixel.
    """
    distance, whole = (float(np.sqrt(planes.var(axis=0).mean())) for planes in (drawn, real))
    return distance / whole if len(drawn) > 1 and whole > 0 else None


def noise_pixels(drawn: Planes, real: Planes) -> float:
    """Isolated pixels that are at least 8 levels darker than their surroundings, per thousand."""
    shares = [float(np.exp(noise_features(p)[1, 2])) - 1e-4 for p in drawn]
    return 1000 * float(np.mean(shares))


def ink_precision(drawn: Planes, real: Planes) -> float | None:
    """Mean share of the drawn ink that has real ink within one pixel; falls if lines become thicker.

    Ink is darker than its own page by `error_map.INK`.
    """
    shares = []
    for d, r in zip(drawn, real, strict=True):
        mine, other = (page_tone(p) - p > error_map.INK for p in (d, r))
        if mine.any():
            shares.append(float(ndimage.binary_dilation(other, NEIGHBOURS)[mine].mean()))
    return float(np.mean(shares)) if shares else None


def ink_recall(drawn: Planes, real: Planes) -> float | None:
    """Mean share of the real ink that has drawn ink within one pixel; falls if lines break."""
    return ink_precision(real, drawn)


def mean_at_the_end(records: Records, key: str) -> float | None:
    """The mean of a record's value over the last epochs; None if one of them has no finite value.

    Without that epoch the mean would be that of earlier ones, from before the losses were lost.
    """
    values = [r.get(key) for r in records if r["kind"] == "epoch"]
    end = values[-max(2, round(END * len(values))) :]
    known = [v for v in end if v is not None]
    return float(np.mean(known)) if known and len(known) == len(end) else None


def time_ms(records: Records) -> float | None:
    """Milliseconds per image; without the first record, in which the machine warms up."""
    speeds = [r["speed/images_per_s"] for r in records if r["kind"] == "train" and r.get("speed/images_per_s")]
    return 1000 * float(np.mean([1 / s for s in speeds[1:] or speeds])) if speeds else None


def memory_mb(records: Records) -> float | None:
    """The largest value in the log."""
    return max((r["speed/memory_mb"] for r in records if r.get("speed/memory_mb")), default=None)


FROM_LOG: dict[str, Callable[[Records], float | None]] = {
    "loss_g": lambda records: mean_at_the_end(records, "loss/g"),
    "loss_d": lambda records: mean_at_the_end(records, "loss/d"),
    "time": time_ms,
    "memory": memory_mb,
}
FROM_PICTURES: dict[str, Callable[[Planes, Planes], float | None]] = {
    "sharpness": sharpness,
    "noise_pixels": noise_pixels,
    "variety": variety,
    "ink_precision": ink_precision,
    "ink_recall": ink_recall,
}
