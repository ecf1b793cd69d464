"""The baselines: the paper's step, its data folder, a plain inference loop, FID by scipy's sqrtm.

They are written in the simplest way, as the paper's code is. Where the paper leaves a choice, they take the faster one.
"""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid import inception as pytorch_fid
from scipy import linalg
from torch import Tensor, nn
from torch.utils.data import Dataset

from dist_sketch.core.config import Config, DenoiseConfig
from dist_sketch.data import pixels
from dist_sketch.data.shards import Shards
from dist_sketch.inference.denoise import denoise
from dist_sketch.metrics import inception
from dist_sketch.model import networks
from dist_sketch.model.pretrained import SketchGenerator


class PaperStep:
    """Section 3.4 of the paper: float32, default memory format, sigmoid + BCE, two backwards for D, plain Adam.

    D is not frozen while G is trained, so that G's backward computes gradients of D that nobody uses.
    """

    def __init__(self, config: Config, device: torch.device):
        self.g, self.d = networks.generator(config).to(device), networks.discriminator(config).to(device)
        betas = (config.optim.beta1, config.optim.beta2)
        self.adam_g = torch.optim.Adam(self.g.parameters(), config.optim.lr_g, betas)
        self.adam_d = torch.optim.Adam(self.d.parameters(), config.optim.lr_d, betas)
        self.bce, self.l1 = nn.BCELoss(), nn.L1Loss()
        self.loss = config.loss

    def __call__(self, line: Tensor, sketch: Tensor, *, train_d: bool = True, train_g: bool = True) -> dict[str, float]:
        """One step on float32 (B, C, H, W) in [-1, 1]; locked networks are not trained. Returns the losses."""
        output_g = self.g(line)
        losses: dict[str, Tensor] = {}
        if train_d:
            self.adam_d.zero_grad()
            real_d = torch.sigmoid(self.d(line, sketch))
            losses["loss/d_real"] = self.bce(real_d, torch.ones_like(real_d))
            losses["loss/d_real"].backward()
            fake_d = torch.sigmoid(self.d(line, output_g.detach()))
            losses["loss/d_fake"] = self.bce(fake_d, torch.zeros_like(fake_d))
            losses["loss/d_fake"].backward()
            self.adam_d.step()
        if train_g:
            self.adam_g.zero_grad()
            output_d = torch.sigmoid(self.d(line, output_g))
            bce_g = self.bce(output_d, torch.ones_like(output_d))
            l1_g = self.l1(output_g, sketch)
            losses["loss/g_bce"], losses["loss/g_l1"] = bce_g, l1_g
            losses["loss/g"] = self.loss.scale * (bce_g + self.loss.lambda_l1 * l1_g)
            losses["loss/g"].backward()
            self.adam_g.step()
        return {name: value.item() for name, value in losses.items()}


class JpegFolder(Dataset[Any]):
    """ROOT/train_line/N.jpg and ROOT/train_sketch/N.jpg, decoded and resized by Pillow at every reading.

    The images are uint8 (3, size, size), as in our loader, so that both are measured without the conversion to floats.
    """

    def __init__(self, root: Path, size: int):
        self.root, self.size = root, size
        self.names = sorted(p.name for p in (root / "train_line").iterdir())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        line, sketch = (self._read(side, self.names[i]) for side in ("line", "sketch"))
        return line, sketch

    def _read(self, side: str, name: str) -> Tensor:
        with Image.open(self.root / f"train_{side}" / name) as image:
            small = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        return pixels.from_image(small, 3)


@torch.no_grad()
def infer(run: Path, shards: Path, split: str, out: Path, batch_size: int, device: torch.device) -> int:
    """Draws in eager float32, then removes noise and writes PNG files one by one. Returns the number of images.

    The files are those of `dist_sketch.inference.infer` for lines without sketches: raw/, sketch/, line/.
    """
    model = SketchGenerator.load(run).to(device)
    source = Shards(shards, split)
    for folder in ("raw", "sketch", "line"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for start in range(0, len(source), batch_size):
        samples = [source.read(i, 3) for i in range(start, min(start + batch_size, len(source)))]
        lines = pixels.to_float(torch.stack([s.line for s in samples]).to(device))
        drawn = pixels.to_uint8(model(lines)).cpu()
        for sample, raw in zip(samples, drawn, strict=True):
            finish(out, sample.name, sample.line, raw, model.denoise)
    return len(source)


def finish(out: Path, name: str, line: Tensor, raw: Tensor, settings: DenoiseConfig) -> None:
    """Removes noise from one drawing and writes PNG files with Pillow's default settings."""
    for folder, image in (("raw", raw), ("sketch", denoise(raw, settings)), ("line", line)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(out / folder / f"{name}.png")


def frechet(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Fréchet distance of features (n, d) and (m, d) by scipy's matrix square root, as in pytorch-fid."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    shift = x.mean(0) - y.mean(0)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(a @ b)
    if not np.isfinite(root).all():
        eps = np.eye(len(a)) * 1e-6
        root = linalg.sqrtm((a + eps) @ (b + eps))
    return float(shift @ shift + np.trace(a) + np.trace(b) - 2 * np.trace(root).real)


def pytorch_fid_net(weights: inception.Weights, dims: int, device: torch.device) -> nn.Module:
    """pytorch-fid's own network for one of its feature sizes, with our file of weights."""
    index = pytorch_fid.InceptionV3.BLOCK_INDEX_BY_DIM[dims]
    state = inception.state(weights, inception.skeleton())
    state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}  # a layer that it does not use
    download: Callable[..., Any] = pytorch_fid.load_state_dict_from_url
    pytorch_fid.load_state_dict_from_url = lambda *_, **__: state
    try:
        return pytorch_fid.InceptionV3([index]).to(device)
    finally:
        pytorch_fid.load_state_dict_from_url = download


def pytorch_fid_score(
    net: nn.Module, drawn: list[Path], real: list[Path], dims: int, device: torch.device, workers: int
) -> float:
    """FID of two lists of files as pytorch-fid computes it: its loop, batches of 50, sqrtm."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = [
            fid_score.get_activations([str(p) for p in files], net, 50, dims, str(device), workers)
            for files in (drawn, real)
        ]
    return frechet(*found)
