"""Scores drawn sketches: SSIM, SCOOT, PSNR, L1, specks per image; FID and KID per set; the same for baselines."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_sketch.metrics import inception
from dist_sketch.metrics.definitions import BASELINES
from dist_sketch.metrics.fid_kid import Array, frechet, kid
from dist_sketch.metrics.scoot import SCOOT_SETTINGS, scoot
from dist_sketch.metrics.similarity import PSNR_CAP, SSIM_SETTINGS, l1, psnr, ssim
from dist_sketch.metrics.specks import SPECKS_SETTINGS, specks

EACH: dict[str, Callable[[Tensor, Tensor], float]] = {  # scores of one image, drawn and real
    "ssim": ssim,
    "scoot": scoot,
    "psnr": psnr,
    "l1": l1,
    "specks": lambda drawn, _: specks(drawn),
}
SETS = (*(f"fid_{d}" for d in inception.DIMS), "kid")  # scores of a set
FID_NEEDS = 2048  # images: with fewer, FID is clearly biased and the covariance of 2048 features is singular


class Scorer:
    """Collects the scores and features of one rank's images.

    The indices 0..n-1 of the set are divided among the ranks in any way. Each rank calls `add` (and `add_reference`)
    for its share; `result` merges the states of all ranks. Without `net`, FID and KID are null.
    """

    def __init__(self, net: inception.Inception | None) -> None:
        self._net, weights = net, net.weights if net else None
        self._size: tuple[int, int] | None = None
        self._fid: dict[str, Any] = {
            "network": inception.NETWORK if weights else None,
            "weights": weights.path.name if weights else None,
            "weights_source": weights.source if weights else None,
            "weights_sha256": weights.sha256 if weights else None,
        }
        self._why = None if net else f"no Inception weights on this machine; {inception.WAYS}"
        self._names: list[tuple[int, str]] = []
        self._rows: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self._features: dict[str, list[tuple[int, dict[int, NDArray[np.float32]]]]] = {}
        self._blank: dict[int, NDArray[np.float32]] | None = None
        self._real: dict[int, Tensor] = {}
        self._reference_left_out: list[str] = []

    def add(self, indices: Sequence[int], names: Sequence[str], images: dict[str, Tensor]) -> None:
        """Scores a batch.

        Args:
            indices: place of each image in the whole set.
            names: for the result.
            images: "raw", "denoised", "line", "real": uint8 (B, 3, H, W), all of the network's size.
        """
        self._names += zip(indices, names, strict=True)
        real, blank = images["real"].cpu(), torch.full_like(images["real"], 255)
        self._size = (real.shape[2], real.shape[3])
        self._real.update(zip(indices, real, strict=True))
        drawn = {"raw": images["raw"], "denoised": images["denoised"], "input": images["line"]}
        for kind, batch in {**drawn, "blank": blank}.items():
            self._add_scores(kind, indices, batch, real)
        for kind, batch in {**drawn, "real": images["real"]}.items():
            self._add_features(kind, indices, batch)
        if self._net and self._blank is None and len(blank):
            self._blank = {d: v[0].numpy() for d, v in inception.features(self._net, blank[:1]).items()}

    def add_reference(self, indices: Sequence[int], images: Sequence[Tensor], left_out: Sequence[str] = ()) -> None:
        """Scores real TRAINING sketches as if they had been drawn for the real images of the same indices.

        This shows what a perfect artist would score: SSIM, SCOOT, PSNR and L1 against the sketch of another person, the
        specks of real sketches, FID and KID between two samples of them.

        Args:
            indices: some of this rank's indices, whose images were added before.
            images: uint8 (3, H, W) each, all of the network's size.
            left_out: sentences about sketches that cannot be read.
        """
        self._reference_left_out += left_out
        if indices:
            drawn = torch.stack(list(images))
            self._add_scores("reference", indices, drawn, torch.stack([self._real[i] for i in indices]))
            self._add_features("reference", indices, drawn)

    def state(self) -> dict[str, Any]:
        """This rank's share, for `result`: plain Python and numpy, so that it is pickled fast."""
        kept = ("size", "fid", "why", "names", "rows", "features", "blank", "reference_left_out")
        return {name: getattr(self, f"_{name}") for name in kept}

    def _add_scores(self, kind: str, indices: Sequence[int], drawn: Tensor, real: Tensor) -> None:
        rows = self._rows.setdefault(kind, [])
        for index, a, b in zip(indices, drawn.cpu(), real, strict=True):
            rows.append((index, {name: score(a, b) for name, score in EACH.items()}))

    def _add_features(self, kind: str, indices: Sequence[int], images: Tensor) -> None:
        if self._net is None:
            return
        found = {d: v.numpy() for d, v in inception.features(self._net, images).items()}
        rows = self._features.setdefault(kind, [])
        rows += [(index, {d: v[k] for d, v in found.items()}) for k, index in enumerate(indices)]

    @staticmethod
    def result(states: Sequence[dict[str, Any]], source: str = "memory") -> dict[str, Any]:
        """Merges the states of all ranks to the contents of metrics.json; independent of the number of ranks.

        Args:
            source: what the scored images were: "memory" or "files".

        Raises:
            ValueError: an index is missing or was added twice, or the ranks used different settings.
        """
        states = [s for s in states if s["names"]]
        if not states:
            raise ValueError("no rank has scored anything")
        for key in ("size", "fid", "why"):
            if any(s[key] != states[0][key] for s in states):
                raise ValueError(f"the ranks scored differently: {key} = {[s[key] for s in states]}")
        names = _by_index("names", [s["names"] for s in states])
        n = len(names)
        rows = {k: _by_index(k, [s["rows"].get(k, []) for s in states]) for k in ("raw", "denoised", *BASELINES)}
        for kind, found in rows.items():
            if len(found) != n and (kind != "reference" or len(found) > n):
                raise ValueError(f"{len(found)} scores of {kind} for {n} images")
        features: dict[str, dict[int, Array]] = {}
        if states[0]["why"] is None:
            for kind in ("raw", "denoised", "input", "real", "reference"):
                values = _by_index(f"features of {kind}", [s["features"].get(kind, []) for s in states])
                features[kind] = {d: np.array([v[d] for v in values], np.float64) for d in inception.DIMS}
            features["blank"] = {d: np.broadcast_to(v, (n, d)) for d, v in states[0]["blank"].items()}

        def scores(kind: str) -> dict[str, float | None]:
            of_kind = rows[kind]
            means = {k: float(np.mean([row[k] for row in of_kind])) if of_kind else None for k in EACH}
            return means | _set_scores(features.get(kind), features.get("real"))

        left_out = [sentence for s in states for sentence in s.get("reference_left_out", [])]
        small = f"n = {n} is small: FID is biased upwards below {FID_NEEDS} images; compare only figures of the same n"
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
                "reference_left_out": sorted(left_out),
                "ssim": {**SSIM_SETTINGS, "channels": "mean"},
                "scoot": SCOOT_SETTINGS,
                "specks": SPECKS_SETTINGS,
                "l1": {"scale": "[0, 1]"},
                "psnr": {"data_range": 255, "cap_db": PSNR_CAP},
                "fid": {
                    **states[0]["fid"],
                    "dims": list(inception.DIMS),
                    "resize": inception.RESIZE,
                    "arithmetic": "float32 features, float64 statistics",
                    "note": small if n < FID_NEEDS else None,
                },
                "kid": {"kernel": "(x.y / d + 1)^3", "estimator": "unbiased, whole sets", "dims": 2048},
                "missing": _missing(states[0]["why"], n, len(rows["reference"]), len(left_out)),
            },
            "images": [
                {"name": name, "raw": raw, "denoised": denoised}
                for name, raw, denoised in zip(names, rows["raw"], rows["denoised"], strict=True)
            ],
        }


def _by_index(what: str, parts: list[list[tuple[int, Any]]]) -> list[Any]:
    """The values of all ranks' (index, value) in order; each index of 0..k-1 must be there exactly once.

    But of the real training sketches some may be missing.
    """
    pairs = sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])
    indices = [index for index, _ in pairs]
    if twice := sorted({a for a, b in pairwise(indices) if a == b}):
        raise ValueError(f"{what}: scored more than once: {twice[:10]}")
    if indices and indices[-1] != len(indices) - 1 and "reference" not in what:
        raise ValueError(f"{what}: never scored: {sorted(set(range(indices[-1])) - set(indices))[:10]}")
    return [value for _, value in pairs]


def _set_scores(drawn: dict[int, Array] | None, real: dict[int, Array] | None) -> dict[str, float | None]:
    """FID at each of DIMS, and KID; all None without features or with fewer than two images."""
    if drawn is None or real is None or min(len(drawn[2048]), len(real[2048])) < 2:
        return dict.fromkeys(SETS)
    found: dict[str, float | None] = {f"fid_{d}": frechet(drawn[d], real[d]) for d in inception.DIMS}
    return found | {"kid": kid(drawn[2048], real[2048])}


def _missing(why: str | None, n: int, references: int, left_out: int) -> dict[str, str]:
    """The scores that are null, each with the reason."""
    found = {}
    if why is not None or n < 2:
        found["fid"] = found["kid"] = why or "needs at least two images"
    if not references:
        found["reference"] = f"no real training sketches {'can be read' if left_out else 'were given'}"
    elif references < 2 and not found:
        found["reference"] = "FID and KID need at least two real training sketches"
    return found
