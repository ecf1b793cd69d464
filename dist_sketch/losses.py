"""The paper's losses (section 3.4) as pure functions that return named terms; always computed in float32 or better."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, l1_loss

Gan = Literal["bce", "hinge", "lsgan"]
WINDOW = 7  # of SSIM, px


class GeneratorLoss(NamedTuple):
    """Scalars; `total` is the one to differentiate."""

    total: Tensor
    bce: Tensor
    l1: Tensor


def bce(logits: Tensor, target: float) -> Tensor:
    """Mean binary cross entropy of a whole patch map against one target.

    The paper's sigmoid followed by BCE, in the form that neither overflows nor refuses autocast.
    """
    logits = _wide(logits)
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def adversarial(logits: Tensor | Sequence[Tensor], target: float, kind: Gan, *, drawing: bool = False) -> Tensor:
    """The mean over scales."""
    if not isinstance(logits, Tensor):
        return torch.stack([adversarial(x, target, kind, drawing=drawing) for x in logits]).mean()
    if kind == "bce":
        return bce(logits, target)
    logits = _wide(logits)
    if kind == "lsgan":
        return (logits - target).square().mean()
    if drawing:
        return -logits.mean()
    return (1 - logits * (2 * target - 1)).relu().mean()


def feature_matching(fake: list[list[Tensor]], real: list[list[Tensor]]) -> Tensor:
    """Mean over scales and blocks of L1."""
    terms = [l1_loss(_wide(f), _wide(r)) for a, b in zip(fake, real, strict=True) for f, r in zip(a[:-1], b[:-1], strict=False)]
    return torch.stack(terms).mean()


def ssim(fake: Tensor, sketch: Tensor) -> Tensor:
    """Mean SSIM."""
    x, y = ((_wide(i) + 1) / 2 for i in (fake, sketch))
    n = WINDOW**2
    mean_x, mean_y, xx, yy, xy = (avg_pool2d(i, WINDOW, 1) for i in (x, y, x * x, y * y, x * y))
    unbiased = n / (n - 1)
    var_x, var_y = unbiased * (xx - mean_x**2), unbiased * (yy - mean_y**2)
    cov = unbiased * (xy - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean()


def generator_loss(
    fake_logits: Tensor,
    fake: Tensor,
    sketch: Tensor,
    *,
    lambda_l1: float,
    scale: float,
    gan: Gan = "bce",
    features: Tensor | None = None,
    lambda_features: float = 0.0,
    lambda_ssim: float = 0.0,
) -> GeneratorLoss:
    """scale * (BCE(D(line, fake), 1) + lambda * L1(fake, sketch)).

    Args:
        fake_logits: D's logits for the drawn sketch, (B, 1, h, w).
        fake: drawn sketch (B, C, H, W) in [-1, 1].
        sketch: real sketch, like `fake`.
    """
    judged = adversarial(fake_logits, 1.0, gan, drawing=True)
    distance = l1_loss(_wide(fake), _wide(sketch))
    total = judged + lambda_l1 * distance
    if features is not None:
        total = total + lambda_features * features
    if lambda_ssim:
        total = total + lambda_ssim * (1 - ssim(fake, sketch))
    return GeneratorLoss(scale * total, judged, distance)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
