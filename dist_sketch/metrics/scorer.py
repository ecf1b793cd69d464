"""Scores of drawn sketches against real ones: SSIM, L1, PSNR for each image; FID and KID for the set; baselines."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_sketch.core import fileio
from dist_sketch.metrics import inception
from dist_sketch.metrics.fid_kid import Array, frechet, kid
from dist_sketch.metrics.similarity import PSNR_CAP, SSIM_SETTINGS, l1, psnr, ssim

PAIRED = ("ssim", "l1", "psnr")


SETS = (*(f"fid_{d}" for d in inception.DIMS), "kid")


BASELINES = ("blank", "input", "reference")


FID_NEEDS = 2048  # images; below it the bias of FID matters, and at dims 2048 the covariance has not full rank


class Scorer:
    """Collects one rank's images and scores all ranks' together.

    Each rank calls `add` (and `add_reference`) for its share of the indices 0..n-1; the states of all ranks are
    gathered (any order, any number) and `result` makes one dictionary of them.
    """

    def __init__(
        self, net: inception.Inception | None, why_missing: str | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """Without `net`, FID and KID are null and `why_missing` says why; `net` is moved to `device`."""
        self._net = net.to(device) if net else None
        weights = net.weights if net else None
        self._size: tuple[int, int] | None = None
        self._fid: dict[str, Any] = {
            "network": inception.NETWORK if weights else None,
            "weights": weights.path.name if weights else None,
            "weights_source": weights.source if weights else None,
            "weights_sha256": weights.sha256 if weights else None,
        }
        self._why = None if net else (why_missing or "no Inception weights")
        self._names: list[tuple[int, str]] = []
        self._rows: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self._features: dict[str, list[tuple[int, dict[int, NDArray[np.float32]]]]] = {}
        self._blank: dict[int, NDArray[np.float32]] | None = None
        self._real: dict[int, Tensor] = {}

    def add(self, indices: Sequence[int], names: Sequence[str], images: dict[str, Tensor]) -> None:
        """Scores a batch.

        Args:
            indices: each image's place in the whole set.
            names: as they shall stand in the result.
            images: "raw", "denoised", "line", "real": uint8 (B, 3, H, W), all of the network's size.
        """
        for value in images.values():
            self._check(indices, value)
        self._names += zip(indices, names, strict=True)
        blank = torch.full_like(images["real"], 255)
        real = images["real"].cpu()
        for kind, drawn in (
            ("raw", images["raw"]),
            ("denoised", images["denoised"]),
            ("input", images["line"]),
            ("blank", blank),
        ):
            self._pair(kind, indices, drawn, real)
        self._real.update(zip(indices, real, strict=True))
        for kind, key in (("raw", "raw"), ("denoised", "denoised"), ("input", "line"), ("real", "real")):
            self._extract(kind, indices, images[key])
        if self._net and self._blank is None and len(blank):
            self._blank = {d: v[0].numpy() for d, v in inception.features(self._net, blank[:1]).items()}

    def add_reference(self, indices: Sequence[int], images: Tensor) -> None:
        """Scores real TRAINING sketches as if they had been drawn for the real images of the same indices.

        So SSIM, L1 and PSNR are those of another person's sketch, FID and KID those that a perfect artist would get.

        Args:
            indices: a subset of this rank's indices, whose images have been added before.
            images: uint8 (B, 3, H, W), all of the network's size.
        """
        self._check(indices, images)
        if lost := [i for i in indices if i not in self._real]:
            raise ValueError(f"reference images {lost}: no real image of that index was added on this rank before")
        self._pair("reference", indices, images, torch.stack([self._real[i] for i in indices]))
        self._extract("reference", indices, images)

    def state(self) -> dict[str, Any]:
        """This rank's share: plain Python and numpy, to be pickled."""
        return {
            "size": self._size,
            "fid": self._fid,
            "why": self._why,
            "names": self._names,
            "rows": self._rows,
            "features": self._features,
            "blank": self._blank,
        }

    def _check(self, indices: Sequence[int], images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[:2] != (len(indices), 3):
            raise ValueError(f"images must be uint8 ({len(indices)}, 3, H, W), not {images.dtype} {(*images.shape,)}")
        size = (int(images.shape[2]), int(images.shape[3]))
        self._size = self._size or size
        if size != self._size:
            raise ValueError(f"images of {size} after images of {self._size} (height, width)")

    def _pair(self, kind: str, indices: Sequence[int], drawn: Tensor, real: Tensor) -> None:
        rows = self._rows.setdefault(kind, [])
        for index, a, b in zip(indices, drawn.cpu(), real, strict=True):
            rows.append((index, {"ssim": ssim(a, b), "l1": l1(a, b), "psnr": psnr(a, b)}))

    def _extract(self, kind: str, indices: Sequence[int], images: Tensor) -> None:
        if self._net is None:
            return
        found = {d: v.numpy() for d, v in inception.features(self._net, images).items()}
        rows = self._features.setdefault(kind, [])
        rows += [(index, {d: v[k] for d, v in found.items()}) for k, index in enumerate(indices)]

    @staticmethod
    def result(states: Sequence[dict[str, Any]], source: str = "memory") -> dict[str, Any]:
        """Merges all ranks' states to the contents of metrics.json; the same for any number of ranks.

        Args:
            states: what `state` gave on each rank.
            source: "memory" or "files": what the scored images were.

        Raises:
            ValueError: an index is missing or was added twice, or the ranks scored in different ways.
        """
        return _merge([s for s in states if s["names"]], source)


def _merge(states: list[dict[str, Any]], source: str) -> dict[str, Any]:
    if not states:
        raise ValueError("no rank has scored anything")
    for key in ("size", "fid", "why"):
        if any(s[key] != states[0][key] for s in states):
            raise ValueError(f"the ranks scored differently: {key} = {[s[key] for s in states]}")
    names = _in_order("names", [s["names"] for s in states])
    n = len(names)
    rows = {
        kind: _in_order(kind, [s["rows"].get(kind, []) for s in states])
        for kind in ("raw", "denoised", "input", "blank", "reference")
    }
    features = {
        kind: _stack(_in_order(f"features of {kind}", [s["features"].get(kind, []) for s in states]))
        for kind in ("raw", "denoised", "input", "real", "reference")
        if states[0]["why"] is None
    }
    if features:
        features["blank"] = {d: np.broadcast_to(v, (n, d)) for d, v in states[0]["blank"].items()}
    for kind, found in rows.items():
        if len(found) != n and (kind != "reference" or len(found) > n):
            raise ValueError(f"{len(found)} scores of {kind} for {n} images")

    missing = {}
    if states[0]["why"] is not None:
        missing["fid"] = missing["kid"] = states[0]["why"]
    elif n < 2:
        missing["fid"] = missing["kid"] = "needs at least two images"
    if not rows["reference"]:
        missing["reference"] = "no real training sketches were given"
    elif len(rows["reference"]) < 2 and not missing:
        missing["reference"] = "FID and KID need at least two real training sketches"

    def scores(kind: str) -> dict[str, float | None]:
        found: dict[str, float | None] = {
            key: float(np.mean([row[key] for row in rows[kind]])) if rows[kind] else None for key in PAIRED
        }
        return found | _set_scores(features.get(kind), features.get("real"))

    height, width = states[0]["size"]
    return {
        "n": n,
        "size": height if height == width else [height, width],
        "raw": scores("raw"),
        "denoised": scores("denoised"),
        "baselines": {kind: scores(kind) for kind in BASELINES},
        "settings": {
            "images": "uint8 RGB (gray repeated) at the network's size",
            "source": source,
            "reference_n": len(rows["reference"]),
            "ssim": {**SSIM_SETTINGS, "channels": "mean"},
            "l1": {"scale": "[0, 1]"},
            "psnr": {"data_range": 255, "cap_db": PSNR_CAP},
            "fid": {
                **states[0]["fid"],
                "dims": list(inception.DIMS),
                "resize": inception.RESIZE,
                "arithmetic": "float32 features, float64 statistics",
                "note": _small(n),
            },
            "kid": {"kernel": "(x.y / d + 1)^3", "estimator": "unbiased, whole sets", "dims": 2048},
            "missing": missing,
        },
        "images": [
            {"name": name, "raw": raw, "denoised": denoised}
            for name, raw, denoised in zip(names, rows["raw"], rows["denoised"], strict=True)
        ],
    }


def _in_order(what: str, parts: list[list[tuple[int, Any]]]) -> list[Any]:
    """All ranks' (index, value) as values by index; each of 0..k-1 must be there exactly once."""
    pairs = sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])
    indices = [index for index, _ in pairs]
    if twice := sorted({a for a, b in pairwise(indices) if a == b}):
        raise ValueError(f"{what}: scored more than once: {twice[:10]}")
    if indices and indices[-1] != len(indices) - 1:
        raise ValueError(f"{what}: never scored: {sorted(set(range(indices[-1])) - set(indices))[:10]}")
    return [value for _, value in pairs]


def _stack(rows: list[dict[int, NDArray[np.float32]]]) -> dict[int, Array]:
    return {d: np.array([row[d] for row in rows], np.float64).reshape(len(rows), d) for d in inception.DIMS}


def _set_scores(drawn: dict[int, Array] | None, real: dict[int, Array] | None) -> dict[str, float | None]:
    """FID at each of DIMS, and KID; all None without features or with fewer than two images."""
    if drawn is None or real is None or min(len(drawn[2048]), len(real[2048])) < 2:
        return dict.fromkeys(SETS)
    found: dict[str, float | None] = {f"fid_{d}": frechet(drawn[d], real[d]) for d in inception.DIMS}
    return found | {"kid": kid(drawn[2048], real[2048])}


def _small(n: int) -> str | None:
    if n >= FID_NEEDS:
        return None
    return f"n = {n} is small: FID is biased upwards below {FID_NEEDS} images; compare only figures of the same n"


def write_scores(out: Path, result: dict[str, Any]) -> None:
    """Writes OUT/metrics.json.

    Raises:
        UserError: the folder cannot be written.
    """
    fileio.write_json(out / "metrics.json", result)
