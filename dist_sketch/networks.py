"""The paper's networks (sections 3.2 and 3.3) and the 5-layer baseline of its Fig. 6.

Both halves of a pair are (B, C, H, W) in [-1, 1]; H and W are multiples of 64.
"""

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.nn.utils.parametrizations import spectral_norm

from dist_sketch.config import Config
from dist_sketch.errors import UserError

Norm = Literal["batch", "instance", "group", "none"]
Upsample = Literal["transposed", "transposed4", "resize"]

SLOPE = 0.01  # of every LeakyReLU
GROUPS = 8


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "instance":
        # Instance norm is group norm with one channel a group. torch's InstanceNorm2d gives wrong gradients on CPUs for
        # one sample in channels_last (2.15), that is for one pair a rank.
        return nn.GroupNorm(channels, channels)
    if kind == "group":
        return nn.GroupNorm(GROUPS, channels)
    return nn.Identity()


class Down(nn.Sequential):
    """(B, in, H, W) -> (B, out, H/2, W/2): convolution, activation, norm, in the paper's order."""

    def __init__(self, channels_in: int, channels_out: int, norm: Norm):
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1),
            nn.LeakyReLU(SLOPE),
            _norm(norm, channels_out),
        )


def _upsample(kind: Upsample, channels_in: int, channels_out: int) -> nn.Module:
    """(B, in, H, W) -> (B, out, 2H, 2W)."""
    if kind == "transposed":
        return nn.ConvTranspose2d(channels_in, channels_out, 3, stride=2, padding=1, output_padding=1)
    if kind == "transposed4":
        return nn.ConvTranspose2d(channels_in, channels_out, 4, stride=2, padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels_in, channels_out, 3, padding=1))


class Up(nn.Sequential):
    """(B, in, H, W) -> (B, out, 2H, 2W): transposed convolution, activation, norm, channel dropout."""

    def __init__(
        self, channels_in: int, channels_out: int, norm: Norm, dropout: float, upsample: Upsample = "transposed"
    ):
        super().__init__(
            _upsample(upsample, channels_in, channels_out),
            nn.LeakyReLU(SLOPE),
            _norm(norm, channels_out),
            nn.Dropout2d(dropout),
        )


class Generator(nn.Module):
    """U-Net: six halvings, five doublings with skips, a last transposed convolution and tanh.

    Args:
        channels: of the line and of the sketch; 3 or 1.
        dropout: rate of the channel dropout in the up blocks.
        norm: "batch" is the paper's.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        dropout: float = 0.5,
        norm: Norm = "batch",
        width: int = 64,
        upsample: Upsample = "transposed",
        detail: int = 0,
    ):
        super().__init__()
        widths = [width * n for n in (1, 2, 4, 8, 8, 8)]
        self.down = nn.ModuleList(Down(i, o, norm) for i, o in zip((channels, *widths), widths, strict=False))
        # Each up block but the first takes the previous one's output and the skip of the same size.
        ups = ((8, 8), (16, 8), (16, 4), (8, 2), (4, 1))
        self.up = nn.ModuleList(Up(i * width, o * width, norm, dropout, upsample) for i, o in ups)
        self.last = _upsample(upsample, 2 * width, detail or channels)
        self.detail = None
        if detail:
            self.detail = nn.Sequential(
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(detail + channels, detail, 3, padding=1),
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(detail, channels, 3, padding=1),
            )

    def forward(self, line: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), both in [-1, 1]."""
        _check_size(line)
        skips, x = [], line
        for down in self.down:
            x = down(x)
            skips.append(x)
        skips.pop()
        for up in self.up:
            x = torch.cat((up(x), skips.pop()), dim=1)
        x = self.last(x)
        return torch.tanh(x if self.detail is None else self.detail(torch.cat((x, line), dim=1)))


class Discriminator(nn.Module):
    """PatchGAN: (line, sketch) -> one logit a patch; 256 px gives 60 x 60 of them.

    It returns logits, not the paper's sigmoid: `losses` applies the same function in a numerically safe form.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        dropout: float = 0.5,
        norm: Norm = "batch",
        layers: int = 2,
        scales: int = 1,
        spectral: bool = False,
    ):
        super().__init__()
        self.scales = nn.ModuleList(_patches(2 * channels, dropout, norm, layers, spectral) for _ in range(scales))

    def features(self, *pair: Tensor) -> list[list[Tensor]]:
        """What each block of each scale answers; the last of each are its logits."""
        x, found = torch.cat(pair, dim=1), []
        for n, blocks in enumerate(self.scales):
            y = avg_pool2d(x, 3, 2**n, 1, count_include_pad=False) if n else x
            found.append([])
            for block in blocks:  # type: ignore[attr-defined]
                y = block(y)
                found[-1].append(y)
        return found

    def forward(self, *pair: Tensor) -> Any:
        """Line and sketch, (B, C, H, W) each, or the two joined, (B, 2C, H, W) -> logits (B, 1, H/4 - 4, W/4 - 4)."""
        logits = [f[-1] for f in self.features(*pair)]
        return logits[0] if len(logits) == 1 else logits


def _patches(channels: int, dropout: float, norm: Norm, layers: int, spectral: bool) -> nn.ModuleList:
    norm = "none" if spectral else norm
    widths = [min(64 * 2**n, 256) for n in range(layers + 1)]
    blocks: list[nn.Module] = [Down(channels, 64, "none")]
    blocks += [Down(i, o, norm) for i, o in pairwise(widths[:-1])]
    i, o = widths[-2:]
    blocks.append(nn.Sequential(nn.Conv2d(i, o, 3), nn.LeakyReLU(SLOPE), _norm(norm, o), nn.Dropout2d(dropout)))
    blocks.append(nn.Conv2d(o, 1, 3))
    if spectral:
        for block in blocks:
            for m in block.modules():
                if isinstance(m, nn.Conv2d):
                    spectral_norm(m)
    return nn.ModuleList(blocks)


class Baseline(nn.Sequential):
    """The "normal 5-layer convolution network" of Fig. 6: plain 3x3 convolutions at full size, 64 wide, tanh last."""

    def __init__(self, *, channels: int = 3, width: int = 64):
        widths = (channels, width, width, width, width)
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(width, channels, 3, padding=1), nn.Tanh())


def _check_size(image: Tensor) -> None:
    height, width = image.shape[-2:]
    if height % 64 or width % 64:
        raise ValueError(f"the generator takes sizes that are multiples of 64, not {height} x {width}")


def check_config(config: Config, size: int, batch: int) -> None:
    """Refuses sizes at which a norm has nothing to normalise over.

    Args:
        size: of the images, px.
        batch: pairs a rank and step.

    Raises:
        UserError: the bottleneck is 1 x 1 and the norm needs more than one value a channel.
    """
    if size == 64 and config.generator.network == "unet":
        if config.norm == "instance":
            raise UserError(
                "norm = 'instance' at 64 px: the bottleneck is 1 x 1 and has no variance; use norm = 'batch'"
            )
        if config.norm == "batch" and batch == 1:
            raise UserError(
                "norm = 'batch' at 64 px with one pair a rank: the bottleneck has one value a channel; "
                "use data.batch_size of at least 2 a rank, or 128 px"
            )


def generator(config: Config) -> nn.Module:
    """The generator, or the baseline, that `config` asks for."""
    if config.generator.network == "baseline":
        return Baseline(channels=config.data.channels)
    g = config.generator
    return Generator(
        channels=config.data.channels,
        dropout=g.dropout,
        norm=config.norm,
        width=g.width,
        upsample=g.upsample,
        detail=g.detail,
    )


def discriminator(config: Config) -> Discriminator:
    """The discriminator that `config` asks for."""
    d = config.discriminator
    return Discriminator(
        channels=config.data.channels,
        dropout=d.dropout,
        norm=config.norm,
        layers=d.layers,
        scales=d.scales,
        spectral=d.spectral_norm,
    )
