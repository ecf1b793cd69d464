"""Pixels: encoded bytes <-> uint8 tensors <-> the networks' floats, and augmentation drawn once for a pair."""

import hashlib
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

JITTER = 286 / 256  # pix2pix (Isola et al. 2017, section 6.2) enlarges by it and crops; here it is the most


def decode(data: bytes, channels: int) -> Tensor:
    """Decodes a packed image to uint8 (channels, H, W); gray is repeated to 3 channels, RGB reduced to 1 (luma)."""
    with Image.open(io.BytesIO(data)) as image:
        return from_image(image, channels)


def from_image(image: Image.Image, channels: int) -> Tensor:
    """A Pillow image as uint8 (channels, H, W)."""
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
        picture.save(buffer, "PNG", compress_level=3)  # twice as fast as the default 6 for a few percent more bytes
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
    """Resizes uint8 (..., H, W), bicubic and antialiased; the aspect is not kept."""
    if image.shape[-2:] == (height, width):
        return image
    return F.resize(image, [height, width], v2.InterpolationMode.BICUBIC, antialias=True)


def pair_generator(seed: int, epoch: int, key: str) -> torch.Generator:
    """The random stream of one pair in one epoch: the same on any rank, worker or world size."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def augment(
    line: Tensor, sketch: Tensor, generator: torch.Generator, *, flip: bool, jitter: bool
) -> tuple[Tensor, Tensor]:
    """Mirrors, enlarges and shifts a pair of uint8 (C, H, W) images: one draw, applied to both halves."""
    height, width = line.shape[-2:]
    draw = torch.rand(4, generator=generator).tolist()  # always four, so that one option does not shift another's draw
    if jitter:
        zoom = 1 + (JITTER - 1) * draw[3]  # down to none: what is drawn later is not enlarged
        big_h, big_w = round(height * zoom), round(width * zoom)
        top, left = int(draw[0] * (big_h - height + 1)), int(draw[1] * (big_w - width + 1))
        line, sketch = (resize(i, big_h, big_w)[:, top : top + height, left : left + width] for i in (line, sketch))
    if flip and draw[2] < 0.5:
        line, sketch = line.flip(-1), sketch.flip(-1)
    return line, sketch
