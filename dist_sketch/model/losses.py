"""The paper's losses (section 3.4) as pure functions; always computed in float32 or better.

Each returns one value per pair, so that the step can leave pairs out of its mean: those that could not be read.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, l1_loss, softplus

WINDOW = 7  # px, of SSIM


def bce(logits: Tensor, target: float | Tensor) -> Tensor:
    """Mean binary cross entropy of each patch map (B, 1, h, w) against one target: shape (B,).

    The same as the paper's sigmoid followed by BCE, but it cannot overflow and works under autocast.

    Args:
        target: 1: the patches shall be taken for real; 0: for drawn. Or one number for each pair, (B, 1, 1, 1).
    """
    # -log(sigmoid(x)) = log(1 + exp(-x)); above 40 that is x itself, even in float64.
    return each_mean(softplus((1 - 2 * target) * _wide(logits), threshold=40))


def l1(fake: Tensor, sketch: Tensor) -> Tensor:
    """Mean absolute difference of each pair, (B, C, H, W) each: shape (B,)."""
    return each_mean(l1_loss(_wide(fake), _wide(sketch), reduction="none"))


def ssim(fake: Tensor, sketch: Tensor) -> Tensor:
    """Mean structural similarity (Wang et al. 2004) of each pair, (B, C, H, W) in [-1, 1], per channel: shape (B,).

    For training only: its uniform windows are cheap to differentiate. Reports and choices use
    `metrics.similarity.ssim`, whose windows are Gaussian.
    """
    x, y = _wide(fake), _wide(sketch)
    planes = torch.cat((x, y, x * x, y * y, x * y))
    mean_x, mean_y, xx, yy, xy = avg_pool2d(planes, WINDOW, stride=1).chunk(5)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # the range of the values is 2
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    luminance = (2 * product + c1) / (squares + c1)
    structure = (2 * unbiased * (xy - product) + c2) / (unbiased * (xx + yy - squares) + c2)
    return each_mean(luminance * structure)


def each_mean(x: Tensor) -> Tensor:
    """The mean over all values of each pair: (B, ...) -> (B,)."""
    return x.mean(tuple(range(1, x.ndim)))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
