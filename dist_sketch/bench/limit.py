"""The machine's limit: how fast plain convolutions are, and how many operations a step takes."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dist_sketch.bench.measure import Variants
from dist_sketch.bench.options import BenchOptions
from dist_sketch.bench.paper_way import default_float32
from dist_sketch.core.precision import AUTOCAST

# (batch, channels, side) of the plain convolutions; the fastest one is the limit
SHAPES = {"cpu": ((8, 128, 64), (8, 256, 64), (8, 512, 32)), "cuda": ((64, 256, 64), (64, 512, 32), (32, 1024, 32))}
QUICK_SHAPES = ((2, 32, 32),)


class Limit(NamedTuple):
    """The fastest plain convolution."""

    name: str
    convolve: Callable[[], object]
    flops: int  # of one call


def count_flops(go: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products in `go`.

    `go` must run eagerly: the replay of a CUDA graph calls no operators that could be counted.
    """
    with FlopCounterMode(display=False) as counter:
        go()
    return int(counter.get_total_flops())


def plain_convolutions(options: BenchOptions, device: torch.device, precisions: list[str]) -> Variants:
    """Plain 3x3 convolutions, channels last, forward and both backwards.

    Args:
        precisions: those of a step, and "tf32": torch's own default on GPUs.
    """
    variants: dict[str, Callable[[], object]] = {}
    for precision in precisions:
        for b, c, side in QUICK_SHAPES if options.quick else SHAPES[device.type]:
            dtype, last = AUTOCAST.get(precision, torch.float32), torch.channels_last
            conv = nn.Conv2d(c, c, 3, padding=1).to(device, dtype).to(memory_format=last)
            x, gradient = (torch.randn(b, c, side, side).to(device, dtype, memory_format=last) for _ in range(2))
            x.requires_grad_()

            def go(
                conv: nn.Conv2d = conv, x: Tensor = x, gradient: Tensor = gradient, precision: str = precision
            ) -> None:
                with default_float32() if precision == "tf32" else nullcontext():
                    conv.zero_grad()
                    x.grad = None  # else adding to the last gradients would be part of the limit
                    conv(x).backward(gradient)

            variants[f"limit: {precision}, convolution {b}x{c}x{side}x{side}"] = go
    return variants
