"""From line pictures to portraits in Python, with the same pixels that `dist-sketch infer` writes."""

import math
import os
import warnings
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from dist_sketch.core.config import DenoiseConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.precision import full_float32
from dist_sketch.data import fit, looks, pixels
from dist_sketch.data.image_files import MAX_PIXELS, as_read, read_image
from dist_sketch.data.manifest import Fit
from dist_sketch.model.denoise import denoise

Picture = Image.Image | str | os.PathLike[str]
Pictures = list[Picture] | tuple[Picture, ...]
Size = Literal["source", "network"] | int
MOST_PX = math.isqrt(MAX_PIXELS)
BATCH = 8  # pictures that are drawn at once; it does not change them


def draw(
    net: nn.Module,
    pictures: Pictures,
    *,
    px: int,
    channels: int,
    size: Size,
    clean: DenoiseConfig | None,
    how: Fit,
    invert: bool,
) -> list[Image.Image]:
    """Draws each picture, on the device of the network.

    Args:
        px: the side of the network's square; its pictures have so many `channels`.
        clean: noise removal; None: the drawings as the network made them.
        size, how, invert: see `SketchGenerator.draw`.

    Raises:
        UserError: see there.
    """
    if size not in ("source", "network") and not (type(size) is int and 1 <= size <= MOST_PX):
        raise UserError(f"size = {size!r}: must be 'source', 'network' or a number of px up to {MOST_PX:,}")
    if how not in get_args(Fit):
        raise UserError(f"fit = {how!r}: must be one of {', '.join(get_args(Fit))}")
    long_side = size if isinstance(size, int) else {"source": None, "network": px}[size]
    results = []
    for first in range(0, len(pictures), BATCH):
        squares, pages = [], []
        for number, picture in enumerate(pictures[first : first + BATCH], first + 1):
            line = _read(picture, number)
            square = fit.fitted(line, line.size, px, how, invert=invert)
            _warn(looks.look_at_input(square), picture, number)
            squares.append(pixels.from_image(square, channels))
            pages.append(line.size)
        for raw, page in zip(_drawn(net, torch.stack(squares)), pages, strict=True):
            image = pixels.to_rgb(raw)
            if clean is not None:
                image = denoise(image, clean)[: 1 if clean.gray else 3]
            width, height = fit.shape(page, long_side, how)
            array = pixels.resize(fit.cut(image, page, how), height, width).permute(1, 2, 0).numpy()
            results.append(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array))
    return results


def _read(picture: Picture, number: int) -> Image.Image:
    """The line in mode "L" or "RGB", upright."""
    if isinstance(picture, Image.Image):
        return as_read(picture, f"picture {number}")
    if isinstance(picture, str | os.PathLike):
        return read_image(Path(picture).expanduser())
    raise UserError(
        f"picture {number}: is of the type {type(picture).__name__}; draw takes Pillow's pictures, paths of files, or "
        "a list of these (an array becomes a picture by PIL.Image.fromarray)"
    )


def _warn(kinds: list[str], picture: Picture, number: int) -> None:
    """Warns as `infer` does of a picture that is not what generators are made for."""
    name = f"picture {number}" if isinstance(picture, Image.Image) else picture
    for kind in kinds:
        why = looks.WHY_INPUT[kind].replace("--invert", "invert=True")
        warnings.warn(f"{name}: {why}", stacklevel=4)  # at the line that calls SketchGenerator.draw


@torch.no_grad()
def _drawn(net: nn.Module, lines: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> the same on the CPU: without dropout, in float32 that no device shortens."""
    weight, was_training = next(net.parameters()), net.training
    net.to(memory_format=torch.channels_last).eval()
    batch = pixels.to_float(lines.to(weight.device)).to(weight.dtype, memory_format=torch.channels_last)
    try:
        with full_float32(weight.device):
            result = net(batch)
    finally:
        net.train(was_training)
    if not result.isfinite().all():
        raise UserError("the generator draws values that are no numbers, which would be black pages: it is damaged")
    return pixels.to_uint8(result).cpu()
