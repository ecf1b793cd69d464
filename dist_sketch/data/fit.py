"""How a page becomes the networks' square, and how what is drawn in the square gets the page's shape back.

A page is the (width, height) of a line's file. A pair's sketch is laid out as its line, the only page `infer` has.
"""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from dist_sketch.data.manifest import Fit

if TYPE_CHECKING:  # torch would take each process that packs three seconds, and it is not needed there
    from torch import Tensor

BICUBIC = Image.Resampling.BICUBIC
Page = tuple[int, int]


def fitted(image: Image.Image, page: Page, size: int, fit: Fit, *, invert: bool = False) -> Image.Image:
    """Brings an image of a page, of any width and height, to `size` x `size`; mode "L" or "RGB" stays.

    squash: the whole page, its aspect ratio is not kept; pad: the whole page in the middle, with margins; crop: the
    largest square in its middle. The margins have the median tone of the page's own border: white ones beside gray
    paper would look like a drawn edge.

    Args:
        invert: the image is light on dark, and gets dark on light.
    """
    if invert:
        image = ImageOps.invert(image)
    if fit == "pad":
        left, top, width, height = placed(page, size)
        inner = image.resize((width, height), BICUBIC)
        padded = Image.new(image.mode, (size, size), _border_tone(np.asarray(inner)))
        padded.paste(inner, (left, top))
        return padded
    if fit == "crop":
        side = min(page)
        box = [at * of / length for at, of, length in zip(_middle(page, side), image.size * 2, page * 2, strict=True)]
        return image.resize((size, size), BICUBIC, box=tuple(box))  # type: ignore[arg-type]
    return image.resize((size, size), BICUBIC)


def placed(page: Page, size: int) -> tuple[int, int, int, int]:
    """Where "pad" puts the page in the square: left, top, width, height in px."""
    width, height = (max(1, round(size * side / max(page))) for side in page)
    return (size - width) // 2, (size - height) // 2, width, height


def shape(page: Page, px: int | None, fit: Fit) -> Page:
    """Width and height of a drawing's files, whose long side has `px`; None: as many as the page."""
    if fit == "pad":
        return page if px is None else placed(page, px)[2:]
    side = min(page) if px is None else px
    return page if px is None and fit == "squash" else (side, side)


def cut(image: "Tensor", page: Page, fit: Fit) -> "Tensor":
    """The page's part of a square (C, size, size): without the margins of "pad"."""
    if fit != "pad":
        return image
    left, top, width, height = placed(page, image.shape[-1])
    return image[:, top : top + height, left : left + width]


def with_plain_margins(image: "Tensor", page: Page, fit: Fit) -> "Tensor":
    """The square (C, size, size) with margins in the tone of the page's border, as `fitted` makes them of `cut`.

    A picture is scored so whether it comes from the network, which draws in the margins too, or from a file.
    """
    if fit != "pad":
        return image
    inner = cut(image, page, fit)
    tone = _border_tone(inner.permute(1, 2, 0).cpu().numpy())
    plain = image.new_tensor(tone).reshape(-1, 1, 1).expand_as(image).clone()
    cut(plain, page, fit).copy_(inner)
    return plain


def _middle(page: Page, side: int) -> tuple[int, int, int, int]:
    left, top = ((length - side) // 2 for length in page)
    return left, top, left + side, top + side


def _border_tone(levels: np.ndarray) -> tuple[int, ...]:
    """The median of the outermost pixels (H, W) or (H, W, C), a channel."""
    border = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]]).reshape(-1, *levels.shape[2:])
    return tuple(int(tone) for tone in np.atleast_1d(np.median(border, axis=0)))
