"""The paper's networks (sections 3.2 and 3.3) and the 5-layer baseline of its Fig. 6.

Both halves of a pair are (B, C, H, W) in [-1, 1]; H and W are multiples of 64, with an enhancer of 128.
"""

from functools import cache
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, batch_norm, conv_transpose2d, interpolate, leaky_relu

from dist_sketch.core.config import Config
from dist_sketch.core.errors import UserError

Norm = Literal["batch", "instance", "group", "none"]
Upsample = Literal["transposed", "resize"]
SLOPE = 0.01  # of every LeakyReLU
GROUPS = 8  # of group norm
CONVERTING = ("cuda",)  # devices on which group norm changes type and memory format


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return BatchNorm(channels)
    if kind == "instance":
        # Instance norm is group norm with one channel per group. torch's InstanceNorm2d (2.15) gives wrong gradients on
        # CPUs for a single sample in channels_last, which happens with one pair per rank.
        return GroupNorm(channels, channels)
    if kind == "group":
        return GroupNorm(GROUPS, channels)
    return nn.Identity()


class BatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d, but it does not count its batches: that would be one more GPU kernel a layer for nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        assert self.momentum is not None
        own = self.running_mean, self.running_var, self.weight, self.bias
        return batch_norm(x, *own, self.training, self.momentum, self.eps)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, whose answer has the type and memory format of its input on GPUs, too.

    There autocast and torch's kernel (before 2.15) make float32 in planes of it, so that each later layer would work on
    twice the bytes and convert them again. The statistics are still computed in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if x.device.type not in CONVERTING or x.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(x)
        wide = super().forward(x.to(torch.float32, memory_format=torch.contiguous_format))
        return wide.to(x.dtype, memory_format=_layout(x))


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


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
    return Resize(channels_in, channels_out)


class Resize(nn.Conv2d):
    """(B, in, H, W) -> (B, out, 2H, 2W): enlarged by the nearest neighbour, then a convolution of 3 x 3.

    A transposed convolution with a 3 x 3 kernel and stride 2 covers its output unevenly, which shows as a checkerboard;
    this does not (Odena et al. 2016).
    """

    smear: Tensor

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(channels_in, channels_out, 3)
        rows = [[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
        # The Kronecker product (3 x 3, 4 x 4); on the device "meta" torch.kron would import torch._dynamo for a second.
        smear = torch.tensor([[a * b for a in one for b in other] for one in rows for other in rows])
        self.register_buffer("smear", smear, persistent=False)
        self._folded: tuple[object, Tensor] = (None, self.smear)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, 2H, 2W)."""
        # Both steps together are one transposed convolution, whose 4 x 4 kernel is the 3 x 3 kernel smeared over 2 x 2.
        # It works on the small image: 2.25 times less arithmetic, and no enlarged image in memory.
        return conv_transpose2d(x, self._kernel(), self.bias, stride=2, padding=1)

    def train(self, mode: bool = True) -> Self:
        """Also forgets the kernel of the last drawing: a replayed CUDA graph changes weights without telling torch."""
        self._folded = None, self.smear
        return super().train(mode)

    def folded(self) -> nn.ConvTranspose2d:
        """The same layer for programs that do not know this class: the transposed convolution, with its kernel."""
        result = nn.ConvTranspose2d(self.in_channels, self.out_channels, 4, stride=2, padding=1)
        result.load_state_dict({"weight": self._smeared(), "bias": self.bias})
        return result

    def _kernel(self) -> Tensor:
        """(in, out, 4, 4); kept between two drawings, because at batch 1 it takes as long as the convolution."""
        weight = self.weight
        if self.training or torch.is_grad_enabled() or weight.is_inference():
            return self._smeared()
        made_of = weight.data_ptr(), weight._version, weight.dtype, weight.device
        if self._folded[0] != made_of:
            self._folded = made_of, self._smeared()
        return self._folded[1]

    def _smeared(self) -> Tensor:
        weight = self.weight.transpose(0, 1).flatten(2).flatten(0, 1)  # (in * out, 3 * 3)
        return (weight @ self.smear.to(weight.dtype)).view(self.in_channels, self.out_channels, 4, 4)


class Up(nn.Sequential):
    """(B, in, H, W) -> (B, out, 2H, 2W): upsampling convolution, activation, norm, channel dropout."""

    def __init__(
        self, channels_in: int, channels_out: int, norm: Norm, dropout: float, upsample: Upsample = "transposed"
    ):
        super().__init__(
            _upsample(upsample, channels_in, channels_out),
            nn.LeakyReLU(SLOPE),
            _norm(norm, channels_out),
            nn.Dropout2d(dropout),
        )


class Enhancer(nn.Module):
    """What a drawing of twice the size has more than the small one enlarged (Wang et al. 2018, pix2pixHD's G2).

    Its last layer begins with zeros, so that a generator that can draw at half the size begins with its own drawing,
    enlarged. As in a Laplacian pyramid (Denton et al. 2015) only the difference is learnt at full size.

    Args:
        features: channels of the small drawing's last block.
    """

    def __init__(self, features: int, width: int, channels: int, noise: int):
        super().__init__()
        self.enlarge = Resize(features, width)
        last = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.layers = nn.Sequential(
            nn.Conv2d(width + channels + noise, width, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, width, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            last,
        )

    def forward(self, features: Tensor, line: Tensor) -> Tensor:
        """(B, features, H/2, W/2) and the line with noise, (B, C + noise, H, W) -> (B, C, H, W)."""
        x = leaky_relu(self.enlarge(features), SLOPE)
        answer: Tensor = self.layers(torch.cat((x, _like(line, x)), dim=1))
        return answer


class Generator(nn.Module):
    """U-Net: six halvings, five doublings with skips, a last upsampling convolution and tanh.

    `core.config.GeneratorConfig` explains the arguments; their defaults are the paper's. The paper's U-Net has no skip
    connection at full size, which the block of `detail` adds. Its `noise` is new in training and fixed otherwise.
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
        noise: int = 0,
        enhance: int = 0,
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
            widen = nn.Conv2d(detail + channels + noise, detail, 3, padding=1)
            self.detail = nn.Sequential(widen, nn.LeakyReLU(SLOPE), nn.Conv2d(detail, channels, 3, padding=1))
        self.enhancer = Enhancer(detail, enhance, channels, noise) if enhance else None
        self.noise = noise

    def forward(self, line: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), both in [-1, 1]."""
        height, width = line.shape[-2:]
        unit = 64 if self.enhancer is None else 128
        if height % unit or width % unit:
            raise ValueError(f"the generator takes sizes that are multiples of {unit}, not {height} x {width}")
        if self.enhancer is None:
            x, _ = self._unet(line)
        else:
            small, features = self._unet(avg_pool2d(line, 2))
            beside = torch.cat((line, *self._noise(line)), dim=1)
            x = _wide(interpolate(small, scale_factor=2, mode="bilinear")) + self.enhancer(features, beside)
        return torch.tanh(_wide(x))  # bf16 has 26 tones of paper, float32 164

    def _unet(self, line: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the drawing before tanh, of the same shape, and what its last layer made it of."""
        skips, x = [], line
        for down in self.down:
            x = down(x)
            skips.append(x)
        skips.pop()
        for up in self.up:
            x = torch.cat((up(x), skips.pop()), dim=1)
        features = x
        x = self.last(x)
        if self.detail is not None:
            beside = _like(torch.cat((line, *self._noise(line)), dim=1), x)
            features = self.detail[:-1](torch.cat((leaky_relu(x, SLOPE), beside), dim=1))
            x = self.detail[-1](features)
        return x, features

    def _noise(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, noise, H, W) for x (B, C, H, W), or nothing."""
        if not self.noise:
            return ()
        if self.training:
            return (torch.randn(len(x), self.noise, *x.shape[-2:], dtype=x.dtype, device=x.device),)
        return (_fixed_noise((self.noise, *x.shape[-2:]), x.dtype, x.device).expand(x.shape[0], -1, -1, -1),)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _like(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the type and memory format of `other`: otherwise cat would convert everything."""
    return x.to(other.dtype, memory_format=_layout(other))


@cache  # a CUDA graph may use it
def _fixed_noise(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Noise of `shape`: made on the CPU, so that all devices get the same, and copied to `device` only once."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu").to(device, dtype)


class Discriminator(nn.Module):
    """PatchGAN: (line, sketch) -> logits of patches; 256 px gives 60 x 60 of them.

    It returns logits where the paper has a sigmoid: `losses` applies the sigmoid in a numerically safe form.

    Args:
        fine: gain of an extra input plane, tanh(fine * (sketch - its mean over 3 x 3 pixels)); 0: none. The grain of
            paper is about 1 % of the range of tones; without this plane D hardly sees it. It is the finest band of a
            Laplacian pyramid, whose bands Denton et al. (2015) judge separately.
        scales: number of judges; each sees the pair at half the size of the one before (Wang et al. 2018, pix2pixHD).
            A patch is 23 pixels wide, so the first alone sees of a large face only strokes.
        width: channels of the first judge's first block; each next judge has twice as many, for the same work.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        dropout: float = 0.5,
        norm: Norm = "batch",
        fine: float = 0.0,
        scales: int = 1,
        width: int = 64,
    ):
        super().__init__()
        self.fine = fine
        planes = (3 if fine else 2) * channels
        self.layers, *coarser = (_judge(planes, width * 2**i, norm, dropout) for i in range(scales))
        self.coarser = nn.ModuleList(coarser)

    def forward(self, *pair: Tensor) -> Tensor:
        """Line and sketch, (B, C, H, W) each, or the two joined, (B, 2C, H, W) -> (B, scales, H/4 - 4, W/4 - 4).

        The maps of the coarser judges are enlarged to the first one's size, so that each judge weighs the same.
        """
        both = torch.cat(pair, dim=1)
        maps = [self.layers(self._with_fine(both))]
        for judge in self.coarser:
            both = avg_pool2d(both, 2)
            maps.append(interpolate(judge(self._with_fine(both)), size=maps[0].shape[-2:]))
        return torch.cat(maps, dim=1)

    def _with_fine(self, both: Tensor) -> Tensor:
        if not self.fine:
            return both
        sketch = both[:, both.shape[1] // 2 :]
        band = sketch - avg_pool2d(sketch, 3, stride=1, padding=1, count_include_pad=False)
        return torch.cat((both, torch.tanh(self.fine * band)), dim=1)


def _judge(planes: int, width: int, norm: Norm, dropout: float) -> nn.Sequential:
    """(B, planes, H, W) -> one logit for each patch, (B, 1, H/4 - 4, W/4 - 4)."""
    return nn.Sequential(
        Down(planes, width, "none"),
        Down(width, 2 * width, norm),
        nn.Conv2d(2 * width, 4 * width, 3),
        nn.LeakyReLU(SLOPE),
        _norm(norm, 4 * width),
        nn.Dropout2d(dropout),
        nn.Conv2d(4 * width, 1, 3),
    )


class Baseline(nn.Sequential):
    """The "normal 5-layer convolution network" of Fig. 6: plain 3x3 convolutions at full size, 64 wide, tanh last."""

    def __init__(self, *, channels: int = 3, width: int = 64):
        widths = (channels, width, width, width, width)
        layers: list[nn.Module] = []
        for i, o in pairwise(widths):
            layers += [nn.Conv2d(i, o, 3, padding=1), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(width, channels, 3, padding=1), nn.Tanh())


def check_config(config: Config, size: int, batch: int) -> None:
    """Refuses image sizes at which a norm layer has only one value to normalise.

    Args:
        size: width and height of the images, px.
        batch: pairs in one forward pass of a rank.

    Raises:
        UserError: the bottleneck is 1 x 1 and the norm needs more than one value a channel.
    """
    enhance = config.generator.enhance
    if enhance and size % 128:
        raise UserError(f"generator.enhance = {enhance}: needs a size that is a multiple of 128 px, not {size}")
    smallest = 128 if enhance else 64
    if size == smallest and config.generator.network == "unet":
        if config.norm == "instance":
            raise UserError(
                f"norm = 'instance' at {size} px: the bottleneck is 1 x 1 and has no variance; use norm = 'batch'"
            )
        if config.norm == "batch" and batch == 1:
            raise UserError(
                f"norm = 'batch' at {size} px with one pair a rank: the bottleneck has one value a channel; "
                f"use data.batch_size of at least 2 a rank, or {2 * size} px"
            )


def generator(config: Config) -> nn.Module:
    """The generator, or the baseline, that `config` asks for."""
    if config.generator.network == "baseline":
        return Baseline(channels=config.data.channels)
    g = config.generator
    own = {name: getattr(g, name) for name in ("width", "upsample", "detail", "noise", "enhance")}
    return Generator(**_common(config), **own)


def discriminator(config: Config) -> Discriminator:
    """The discriminator that `config` asks for."""
    d = config.discriminator
    return Discriminator(**_common(config), fine=d.fine, scales=d.scales, width=d.width)


def _common(config: Config) -> dict[str, Any]:
    return {"channels": config.data.channels, "dropout": config.generator.dropout, "norm": config.norm}
