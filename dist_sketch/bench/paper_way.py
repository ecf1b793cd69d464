"""The baselines: the paper's step, its data folder, a plain inference loop, FID by scipy's sqrtm.

They are written in the simplest way, as the paper's code is. Where the paper leaves a choice, they take the faster one.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
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
from dist_sketch.data.shards import Sample, Shards
from dist_sketch.metrics import inception
from dist_sketch.model import networks
from dist_sketch.model.denoise import denoise
from dist_sketch.model.losses import ssim
from dist_sketch.model.pretrained import SketchGenerator
from dist_sketch.training.policy import Decision


class PaperStep:
    """Section 3.4 of the paper: float32, default memory format, sigmoid + BCE, two backwards for D, plain Adam.

    D is not frozen while G is trained, so that G's backward computes gradients of D that nobody uses. Its weights are
    those that `dist_sketch.bench.step.build` gives to our step.

    Args:
        tf32: on GPUs, use float32 as torch does by default; else exactly, as our step does.
    """

    def __init__(self, config: Config, device: torch.device, *, tf32: bool = True):
        torch.manual_seed(0)
        self.g, self.d = networks.generator(config).to(device), networks.discriminator(config).to(device)
        betas = (config.optim.beta1, config.optim.beta2)
        self.adam_g = torch.optim.Adam(self.g.parameters(), config.optim.lr_g, betas)
        self.adam_d = torch.optim.Adam(self.d.parameters(), config.optim.lr_d, betas)
        self.bce, self.l1 = nn.BCELoss(), nn.L1Loss()
        self.loss, self.tf32 = config.loss, tf32

    def __call__(self, line: Tensor, sketch: Tensor, decision: Decision, **ignored: object) -> dict[str, float]:
        """One step on float32 (B, C, H, W) in [-1, 1]; locked networks are not trained. Returns the losses.

        It is called like `dist_sketch.training.step.Step`, and ignores that one's other arguments.
        """
        with default_float32() if self.tf32 else contextlib.nullcontext():
            return self._step(line, sketch, decision)

    def _step(self, line: Tensor, sketch: Tensor, decision: Decision) -> dict[str, float]:
        output_g = self.g(line)
        losses: dict[str, Tensor] = {}
        if decision.train_d:
            self.adam_d.zero_grad()
            real_d = torch.sigmoid(self.d(line, sketch))
            losses["loss/d_real"] = self.bce(real_d, torch.ones_like(real_d))
            losses["loss/d_real"].backward()
            fake_d = torch.sigmoid(self.d(line, output_g.detach()))
            losses["loss/d_fake"] = self.bce(fake_d, torch.zeros_like(fake_d))
            losses["loss/d_fake"].backward()
            losses["loss/d"] = losses["loss/d_real"] + losses["loss/d_fake"]
            self.adam_d.step()
        if decision.train_g:
            self.adam_g.zero_grad()
            output_d = torch.sigmoid(self.d(line, output_g))
            losses["loss/g_bce"] = self.bce(output_d, torch.ones_like(output_d))
            losses["loss/g_l1"] = self.l1(output_g, sketch)
            total = losses["loss/g_bce"] + self.loss.lambda_l1 * losses["loss/g_l1"]
            if self.loss.lambda_ssim:  # not the paper's: a preset may have it, and then both steps do the same work
                losses["loss/g_ssim"] = (1 - ssim(output_g, sketch)).mean()
                total = total + self.loss.lambda_ssim * losses["loss/g_ssim"]
            losses["loss/g"] = self.loss.scale * total
            losses["loss/g"].backward()
            self.adam_g.step()
        return {name: value.item() for name, value in losses.items()}


@contextlib.contextmanager
def default_float32() -> Iterator[None]:
    """Torch's own default inside the block: on GPUs, float32 convolutions round their inputs to TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True, fp32_precision="tf32"):
        yield


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
        files = (self.root / f"train_{side}" / self.names[i] for side in ("line", "sketch"))
        images = (Image.open(file, formats=("JPEG",)).convert("RGB") for file in files)
        small = (image.resize((self.size, self.size), Image.Resampling.BICUBIC) for image in images)
        line, sketch = (pixels.from_image(image, 3) for image in small)
        return line, sketch


@torch.no_grad()
def infer(run: Path, shards: Path, split: str, out: Path, batch_size: int, device: torch.device) -> None:
    """Draws in eager float32, then removes noise and writes PNG files one by one.

    The files are those of `dist_sketch.inference.infer` for lines without sketches: raw/, sketch/, line/.
    """
    model = SketchGenerator.load(run).to(device)
    source = Shards(shards, split)
    for start in range(0, len(source), batch_size):
        samples = [source.read(i, 3) for i in range(start, min(start + batch_size, len(source)))]
        lines = pixels.to_float(torch.stack([s.line for s in samples]).to(device))
        drawn = pixels.to_uint8(model(lines)).cpu()
        for sample, raw in zip(samples, drawn, strict=True):
            finish(out, model.denoise, sample, raw)


def finish(out: Path, settings: DenoiseConfig, sample: Sample, raw: Tensor) -> None:
    """Removes noise from one drawing and writes PNG files with Pillow's default settings."""
    for folder, image in (("raw", raw), ("sketch", denoise(raw, settings)), ("line", sample.line)):
        (out / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(out / folder / f"{sample.name}.png")


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
        found = [fid_score.get_activations(files, net, 50, dims, str(device), workers) for files in (drawn, real)]
    return frechet(*found)
