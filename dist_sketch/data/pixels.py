"""Conversions between encoded images, uint8 tensors and the networks' floats; augmentation of pairs."""

import hashlib
import io
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

SHIFT = 1 / 16  # largest shift, as a share of the side; pix2pix resizes to 286 px and crops 256


def from_image(image: Image.Image, channels: int) -> Tensor:
    """A Pillow image as uint8 (channels, H, W); gray is repeated to 3 channels, RGB reduced to 1 (luma)."""
    array = np.array(image.convert("L" if channels == 1 else "RGB"))
    return torch.from_numpy(array.reshape(*array.shape[:2], channels)).permute(2, 0, 1).contiguous()


def encode(image: Tensor, format: str = "png") -> bytes:
    """Encodes uint8 (C, H, W): "png" (gray for one channel) or "jpg" (RGB, quality 95)."""
    array = (to_rgb(image) if format == "jpg" else image).permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    if format == "jpg":
        picture.save(buffer, "JPEG", quality=95)
    else:
        picture.save(buffer, "PNG", compress_level=3)  # twice as fast as the default 6, a few percent more bytes
    return buffer.getvalue()


def to_float(image: Tensor) -> Tensor:
    """uint8 [0, 255] -> float32 [-1, 1], the range of the generator's tanh."""
    return image.to(torch.float32) / 127.5 - 1.0


def to_uint8(image: Tensor) -> Tensor:
    """Float [-1, 1] -> uint8 [0, 255], rounded; the inverse of `to_float` on its values."""
    return ((image.to(torch.float32) + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_rgb(image: Tensor) -> Tensor:
    """(..., 1 or 3, H, W) -> (..., 3, H, W): gray is repeated."""
    return image.expand(*image.shape[:-3], 3, *image.shape[-2:])


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resizes uint8 (..., C, H, W) on the CPU, bicubic and antialiased; the aspect ratio is not kept.

    The same pixels as torchvision's `resize`, which calls the same function but takes a second to import.
    """
    if image.shape[-2:] == (height, width):
        return image
    # To one pixel each channel goes by itself: there torch's way for three channels fails.
    channels = 1 if height == width == 1 else image.shape[-3]
    batch = image.reshape(-1, channels, *image.shape[-2:])
    resized = interpolate(batch, (height, width), mode="bicubic", align_corners=False, antialias=True)
    return resized.reshape(*image.shape[:-2], height, width)


def pair_generator(seed: int, epoch: int, key: str) -> torch.Generator:
    """The random stream of one pair in one epoch: it does not depend on rank, worker or world size."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Move(NamedTuple):
    """How both images of a pair are moved: by whole pixels, so that no stroke is blurred; then mirrored, or not."""

    rows: int  # what is drawn at row i was at row i + rows
    columns: int
    mirror: bool


def draw_move(generator: torch.Generator, height: int, width: int, *, flip: bool, shift: bool) -> Move:
    """Draws the move of a pair of this size; each side moves by up to `most_shift` of its length."""
    # Always three numbers, so that switching one option on does not change the other's.
    vertical, horizontal, mirror = torch.rand(3, generator=generator).tolist()
    rows, columns = (
        int(draw * (2 * most_shift(length) + 1)) - most_shift(length) if shift else 0
        for draw, length in ((vertical, height), (horizontal, width))
    )
    return Move(rows, columns, flip and mirror < 0.5)


def most_shift(length: int) -> int:
    """The largest shift along a side of this length, in pixels."""
    return int(SHIFT * length)


def shifted(length: int, shift: int) -> Tensor:
    """Source index of each pixel along a side that is shifted, int64 (length,); reflection fills the border."""
    indices = torch.arange(length) + shift
    return length - 1 - (length - 1 - indices.abs()).abs()


def moved(image: Tensor, move: Move) -> Tensor:
    """The image, uint8 (C, H, W), shifted and mirrored."""
    height, width = image.shape[-2:]
    if move.rows or move.columns:
        image = image[:, shifted(height, move.rows)][:, :, shifted(width, move.columns)]
    return image.flip(-1) if move.mirror else image


def draw_version(generator: torch.Generator, count: int) -> int | None:
    """Draws which of `count` freehand versions of its line a pair shows; None: the clean one, half of the time."""
    draw = 2 * torch.rand(1, generator=generator, dtype=torch.float64).item()
    return int(draw * count) if count and draw < 1 else None
