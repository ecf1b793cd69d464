"""`dist-sketch bench metrics`: the Fréchet distance beside scipy's sqrtm, scores of an image set beside pytorch-fid."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dist_sketch.bench import paper_way
from dist_sketch.bench.measure import BenchReport, cores, interleaved
from dist_sketch.bench.options import BenchOptions
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import pixels
from dist_sketch.data.image_files import read_image
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.metrics import fid_kid, inception, similarity

FEW = 100  # images, with more features than that
MANY = (768, 1000)  # (features, images)
SQRTM_ROUNDS = 3


def run(report: BenchReport, folder: Path) -> None:
    """Adds all figures of the scores."""
    options = report.options
    _frechet(report, min(FEW, options.dims // 2), options.dims)
    _frechet(report, min(MANY[1], 10 * options.dims), min(MANY[0], options.dims // 2 if options.quick else MANY[0]))
    weights = inception.find(options.fid_weights)
    if weights is None:
        report.note(f"no comparison with pytorch-fid: no Inception weights on this machine; {inception.WAYS}")
        return
    _image_set(report, folder, weights, Ranks(expect_world_size=1).device)


def _frechet(report: BenchReport, n: int, dims: int) -> None:
    rng = np.random.default_rng(0)
    # Unequal variances, as real features have them: they make sqrtm slow.
    scale = np.exp(rng.normal(0, 1, dims)).astype(np.float32)
    x: NDArray[Any] = rng.standard_normal((n, dims), np.float32) * scale
    y: NDArray[Any] = rng.standard_normal((n, dims), np.float32) * scale + np.float32(1)
    values: dict[str, float] = {}
    variants = {
        "sqrtm": lambda: values.update(sqrtm=paper_way.frechet(x, y)),
        "ours": lambda: values.update(ours=fid_kid.frechet(x, y)),
    }
    options = replace(report.options, repeats=min(report.options.repeats, SQRTM_ROUNDS))
    times = interleaved(variants, options, warm=0)
    name = f"Fréchet distance, {n} images, {dims} dims"
    note = f"the values differ by {abs(values['ours'] / values['sqrtm'] - 1):.0e}"
    report.add(name, times["ours"], times["sqrtm"], "s", "scipy.linalg.sqrtm", lower_is_better=True, note=note)


def _image_set(report: BenchReport, folder: Path, weights: inception.Weights, device: torch.device) -> None:
    """From two lists of PNG files to scores."""
    options = report.options
    drawn, real = (_write(options, folder / name, side) for side, name in enumerate(("drawn", "real")))
    dims = 192 if options.quick else 2048
    theirs = paper_way.pytorch_fid_net(weights, dims, device)
    ours = inception.load(weights, device)
    workers = min(8, len(cores()))  # as pytorch-fid's own command does
    values: dict[str, Any] = {}
    variants = {
        "theirs": lambda: values.update(theirs=paper_way.pytorch_fid_score(theirs, drawn, real, dims, device, workers)),
        "ours": lambda: values.update(ours=_scores(ours, drawn, real)),
    }
    times = interleaved(variants, options, warm=int(len(drawn) < 100))
    name, about = (
        f"{len(drawn)} images against {len(real)}: FID at 4 dims, KID, SSIM",
        f"pytorch-fid: FID at {dims} dims",
    )
    note = f"FID-{dims} differs by {abs(values['ours'][f'fid_{dims}'] / values['theirs'] - 1):.0e}"
    report.add(name, times["ours"], times["theirs"], "s", about, lower_is_better=True, note=note)


def _write(options: BenchOptions, folder: Path, side: int) -> list[Path]:
    """Writes `options.images` PNG files, made by shifting a few drawings, so that all of them differ."""
    folder.mkdir()
    few = [np.asarray(synth.draw(0, i, options.size)[side].convert("RGB")) for i in range(min(options.pairs, 16))]
    files = [folder / f"{i:05d}.png" for i in range(options.images)]
    for i, file in enumerate(files):
        shifted = np.roll(few[i % len(few)], (i // len(few) * 3, i), axis=(0, 1))
        Image.fromarray(shifted).save(file)
    return files


def _scores(net: inception.Inception, drawn: list[Path], real: list[Path]) -> dict[str, float]:
    """FID at all dims, KID and the pairs' mean SSIM, in one pass over the files."""
    found: list[list[dict[int, Any]]] = [[], []]
    ssim = []
    for start in range(0, len(drawn), inception.BATCH):
        names = (files[start : start + inception.BATCH] for files in (drawn, real))
        sets = [[pixels.from_image(read_image(file), 3) for file in files] for files in names]
        ssim += [similarity.ssim(a, b) for a, b in zip(*sets, strict=True)]
        for images, features in zip(sets, found, strict=True):
            features.append(inception.features(net, torch.stack(images)))
    x, y = ({d: torch.cat([p[d] for p in parts]).numpy() for d in inception.DIMS} for parts in found)
    scores = {f"fid_{d}": fid_kid.frechet(x[d], y[d]) for d in inception.DIMS}
    return scores | {"kid": fid_kid.kid(x[2048], y[2048]), "ssim": float(np.mean(ssim))}
