"""What the drawings and the log of a finished training measure, for the claims: one number each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dist_sketch.core.fileio import read_json
from dist_sketch.inference.calibration import noise_features
from dist_sketch.inference.denoise import NEIGHBOURS, page_tone
from dist_sketch.metrics.definitions import METRICS
from dist_sketch.reports import error_map
from dist_sketch.tracking.tracker import read_metrics

Planes = NDArray[np.float32]  # (n, H, W), gray [0, 255]


Records = list[dict[str, Any]]


END = 0.2  # share of the epochs that are the end of a training, two at least: a timer of 2 has two phases


class MeasureFormat(NamedTuple):
    """How a measure is printed."""

    label: str
    digits: int


KINDS = {
    **{m.key: MeasureFormat(m.label, m.digits) for m in METRICS},
    "loss_g": MeasureFormat("Loss_G at the end", 3),
    "loss_d": MeasureFormat("Loss_D at the end", 3),
    "time": MeasureFormat("milliseconds an image", 1),
    "memory": MeasureFormat("peak memory in MB", 0),
    "sharpness": MeasureFormat("sharpness (real sketches: 1)", 2),
    "specks": MeasureFormat("pixels in specks, ‰", 2),
    "ink_precision": MeasureFormat("ink that lies within 1 px of the real sketch's", 3),
    "ink_recall": MeasureFormat("the real sketch's ink within 1 px of which ink was drawn", 3),
    "variety": MeasureFormat("distance between two people's drawings (real sketches: 1)", 2),
}


def measure(name: str, run: Path, output: Path, variant: str) -> float | None:
    """One of KINDS; None where it cannot be computed.

    Args:
        run: a training's folder.
        output: what `infer` drew with it.
        variant: "raw" or "denoised" drawings; for the scores and what is measured on pictures.
    """
    if name in FROM_LOG:
        return FROM_LOG[name](read_metrics(run))
    if name in FROM_PICTURES:
        return FROM_PICTURES[name](*pictures(output, variant))
    value = (read_json(output / "metrics.json").get(variant) or {}).get(name)
    return None if value is None else float(value)


def pictures(output: Path, variant: str) -> tuple[Planes, Planes]:
    """The drawings of an output folder and the real sketches, in the same order and at the network's size."""
    drawn, real = zip(*error_map.pairs(output, variant), strict=True)
    return np.stack(drawn), np.stack(real)


def sharpness(drawn: Planes, real: Planes) -> float | None:
    """Mean magnitude of the tone's gradient, as a share of the real sketches'."""

    def gradient(planes: Planes) -> float:
        down, across = np.gradient(planes, axis=(1, 2))
        return float(np.hypot(down, across).mean())

    return _share(gradient(drawn), gradient(real))


def variety(drawn: Planes, real: Planes) -> float | None:
    """Root mean square distance between two people's drawings, as a share of that between their real sketches.

    0: all are the same picture. The mean square over all pairs is twice the variance of each pixel.
    """
    if len(drawn) < 2:
        return None
    return _share(float(np.sqrt(drawn.var(axis=0).mean())), float(np.sqrt(real.var(axis=0).mean())))


def _share(value: float, of: float) -> float | None:
    return value / of if of > 0 else None


def specks(drawn: Planes, real: Planes) -> float | None:
    """Isolated pixels that are darker by 8 levels or more than what is around them, per thousand."""
    shares = [float(np.exp(noise_features(p)[1, 2])) - 1e-4 for p in drawn]
    return 1000 * float(np.mean(shares))


def ink_precision(drawn: Planes, real: Planes) -> float | None:
    """Mean over the pictures of the share of drawn ink that has real ink within one pixel: lines not thickened.

    Ink is what is darker than its own page by `error_map.INK`.
    """
    shares = []
    for d, r in zip(drawn, real, strict=True):
        mine, theirs = (page_tone(p) - p > error_map.INK for p in (d, r))
        if mine.any():
            shares.append(float(ndimage.binary_dilation(theirs, NEIGHBOURS)[mine].mean()))
    return float(np.mean(shares)) if shares else None


def ink_recall(drawn: Planes, real: Planes) -> float | None:
    """Mean share of real ink that has drawn ink within one pixel: lines not broken."""
    return ink_precision(real, drawn)


def _at_the_end(key: str) -> Callable[[Records], float | None]:
    def mean(records: Records) -> float | None:
        values = [r[key] for r in records if r["kind"] == "epoch" and r.get(key) is not None]
        return float(np.mean(values[-max(2, round(END * len(values))) :])) if values else None

    return mean


def time_ms(records: Records) -> float | None:
    """Milliseconds an image, as the log's lines show it; the first, in which the machine warms up, is left out."""
    speeds = [r["speed/images_per_s"] for r in records if r["kind"] == "train" and r.get("speed/images_per_s")]
    return 1000 * float(np.mean([1 / s for s in speeds[1:] or speeds])) if speeds else None


def memory_mb(records: Records) -> float | None:
    """The most that a line of the log shows."""
    return max((r["speed/memory_mb"] for r in records if r.get("speed/memory_mb")), default=None)


FROM_LOG: dict[str, Callable[[Records], float | None]] = {
    "loss_g": _at_the_end("loss/g"),
    "loss_d": _at_the_end("loss/d"),
    "time": time_ms,
    "memory": memory_mb,
}


FROM_PICTURES: dict[str, Callable[[Planes, Planes], float | None]] = {
    "sharpness": sharpness,
    "specks": specks,
    "variety": variety,
    "ink_precision": ink_precision,
    "ink_recall": ink_recall,
}
