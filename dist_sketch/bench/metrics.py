"""`dist-sketch bench metrics`: the Fréchet distance beside scipy's sqrtm, scores of an image set beside pytorch-fid."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dist_sketch.bench import paper_way
from dist_sketch.bench.measure import BenchReport, Times, interleaved
from dist_sketch.bench.options import BenchOptions
from dist_sketch.core import cpus
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import pixels
from dist_sketch.data.image_files import read_image
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.metrics import fid_kid, inception, similarity

FEW = 100  # images, with more features than that
MANY = (768, 1000)  # (features, images)
SQRTM_ROUNDS = 3
Score = Callable[[], float]


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
    options = replace(report.options, repeats=min(report.options.repeats, SQRTM_ROUNDS))
    times, difference = _times(options, 0, lambda: fid_kid.frechet(x, y), lambda: paper_way.frechet(x, y))
    name, note = f"Fréchet distance, {n} images, {dims} dims", f"the values differ by {difference}"
    report.add(name, times["ours"], times["theirs"], "s", "scipy.linalg.sqrtm", note)


def _times(options: BenchOptions, warm: int, ours: Score, theirs: Score) -> tuple[Times, str]:
    """Seconds of two ways to compute a score, and by how much their results differ."""
    values: dict[str, float] = {}
    variants = {"theirs": lambda: values.update(theirs=theirs()), "ours": lambda: values.update(ours=ours())}
    times = interleaved(variants, options, warm=warm)
    return times, f"{abs(values['ours'] / values['theirs'] - 1):.0e}"


def _image_set(report: BenchReport, folder: Path, weights: inception.Weights, device: torch.device) -> None:
    """From two lists of PNG files to scores."""
    options = report.options
    drawn, real = (_write(options, folder / name, side) for side, name in enumerate(("drawn", "real")))
    dims = 192 if options.quick else 2048
    net, their_net = inception.load(weights, device), paper_way.pytorch_fid_net(weights, dims, device)
    workers = min(8, len(cpus.usable()))  # as pytorch-fid's own command does
    times, difference = _times(
        options,
        int(len(drawn) < 100),
        lambda: _scores(net, drawn, real)[f"fid_{dims}"],
        lambda: paper_way.pytorch_fid_score(their_net, drawn, real, dims, device, workers),
    )
    name = f"{len(drawn)} images against {len(real)}: FID at 4 dims, KID, SSIM"
    about, note = f"pytorch-fid: FID at {dims} dims", f"FID-{dims} differs by {difference}"
    report.add(name, times["ours"], times["theirs"], "s", about, note)


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
    """FID at all dims, KID and the pairs' mean SSIM; each file is read once."""
    sets = [torch.stack([pixels.from_image(read_image(file), 3) for file in files]) for files in (drawn, real)]
    x, y = ({d: v.numpy() for d, v in inception.features(net, images).items()} for images in sets)
    scores = {f"fid_{d}": fid_kid.frechet(x[d], y[d]) for d in inception.DIMS}
    ssim = [similarity.ssim(a, b) for a, b in zip(*sets, strict=True)]
    return scores | {"kid": fid_kid.kid(x[2048], y[2048]), "ssim": float(np.mean(ssim))}
