"""`dist-sketch bench metrics`: Fréchet distance beside scipy's sqrtm, a set of images beside pytorch-fid."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dist_sketch.bench import paper_way
from dist_sketch.bench.figures import BenchReport, figure
from dist_sketch.bench.machine import cores
from dist_sketch.bench.options import BenchOptions
from dist_sketch.bench.timing import interleaved
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import pixels
from dist_sketch.data.image_files import read_image
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.metrics import fid_kid, inception, similarity

NAME = "metrics"


FEW = 100  # images, with more features than that


MANY = (768, 1000)  # (features, images)


SQRTM_ROUNDS = 3


def run(report: BenchReport, folder: Path) -> None:
    """All figures of the scores."""
    options = report.options
    _frechet(report, min(FEW, options.dims // 2), options.dims)
    _frechet(report, min(MANY[1], 10 * options.dims), min(MANY[0], options.dims // 2 if options.quick else MANY[0]))
    device = Ranks(expect_world_size=1).device
    weights = inception.find(options.fid_weights)
    if weights is None:
        report.note(NAME, f"no comparison with pytorch-fid: no Inception weights on this machine; {inception.WAYS}")
        return
    _image_set(report, folder, weights, device)


def _frechet(report: BenchReport, n: int, dims: int) -> None:
    rng = np.random.default_rng(0)
    # Unequal variances, as features have them: sqrtm takes its time over these
    scale = np.exp(rng.normal(0, 1, dims)).astype(np.float32)
    x, y = (rng.standard_normal((n, dims), np.float32) * scale + np.float32(i) for i in range(2))
    values: dict[str, float] = {}

    def keep(name: str, function: Callable[[NDArray[Any], NDArray[Any]], float]) -> Callable[[], object]:
        return lambda: values.update({name: function(x, y)})

    variants = {"sqrtm": keep("sqrtm", paper_way.frechet), "ours": keep("ours", fid_kid.frechet)}
    options = replace(report.options, repeats=min(report.options.repeats, SQRTM_ROUNDS))
    times = interleaved(variants, options, warm=0)
    report.add(
        figure(
            NAME,
            f"Fréchet distance, {n} images, {dims} dims",
            times["ours"],
            times["sqrtm"],
            unit="s",
            baseline_name="scipy.linalg.sqrtm",
            lower_is_better=True,
            note=f"the values differ by {abs(values['ours'] / values['sqrtm'] - 1):.0e}",
        )
    )


def _image_set(report: BenchReport, folder: Path, weights: inception.Weights, device: torch.device) -> None:
    """From two lists of PNG files to scores."""
    options = report.options
    drawn, real = (_write(options, folder / name, side) for side, name in enumerate(("drawn", "real")))
    dims = 192 if options.quick else 2048
    theirs = paper_way.pytorch_fid_net(weights, dims, device)
    ours = inception.load(weights, device)
    values: dict[str, Any] = {}
    workers = min(8, len(cores()))  # what pytorch-fid's own command takes

    def mine() -> None:
        values["ours"] = score(ours, drawn, real)

    def pytorch_fid() -> None:
        values["theirs"] = paper_way.pytorch_fid_score(theirs, drawn, real, dims, device, workers)

    times = interleaved({"theirs": pytorch_fid, "ours": mine}, options, warm=int(len(drawn) < 100))
    apart = abs(values["ours"][f"fid_{dims}"] / values["theirs"] - 1)
    report.add(
        figure(
            NAME,
            f"{len(drawn)} images against {len(real)}: FID at 4 dims, KID, SSIM",
            times["ours"],
            times["theirs"],
            unit="s",
            baseline_name=f"pytorch-fid: FID at {dims} dims",
            lower_is_better=True,
            note=f"FID-{dims} differs by {apart:.0e}",
        )
    )


def _write(options: BenchOptions, folder: Path, side: int) -> list[Path]:
    """As many PNG files as asked for, made of few pairs: shifted, so that no two are alike."""
    folder.mkdir()
    few = [np.asarray(synth.draw(0, i, options.size)[side].convert("RGB")) for i in range(min(options.pairs, 16))]
    files = []
    for i in range(options.images):
        shifted = np.roll(few[i % len(few)], (i // len(few) * 3, i), axis=(0, 1))
        Image.fromarray(shifted).save(folder / f"{i:05d}.png")
        files.append(folder / f"{i:05d}.png")
    return files


def score(net: inception.Inception, drawn: list[Path], real: list[Path]) -> dict[str, float]:
    """One set against one reference in one pass over the files: FID at all dims, KID, mean SSIM of the pairs."""
    found: list[list[dict[int, Any]]] = [[], []]
    ssim = []
    for start in range(0, len(drawn), inception.BATCH):
        sets = [[_read(p) for p in files[start : start + inception.BATCH]] for files in (drawn, real)]
        ssim += [similarity.ssim(a, b) for a, b in zip(*sets, strict=True)]
        for images, features in zip(sets, found, strict=True):
            features.append(inception.features(net, torch.stack(images)))
    x, y = ({d: torch.cat([p[d] for p in parts]).numpy() for d in inception.DIMS} for parts in found)
    scores = {f"fid_{d}": fid_kid.frechet(x[d], y[d]) for d in inception.DIMS}
    return scores | {"kid": fid_kid.kid(x[2048], y[2048]), "ssim": float(np.mean(ssim))}


def _read(path: Path) -> torch.Tensor:
    return pixels.from_image(read_image(path), 3)
