"""The paper's losses (section 3.4) as pure functions that return named terms; always computed in float32 or better."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss


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


def generator_loss(
    fake_logits: Tensor, fake: Tensor, sketch: Tensor, *, lambda_l1: float, scale: float
) -> GeneratorLoss:
    """scale * (BCE(D(line, fake), 1) + lambda * L1(fake, sketch)).

    Args:
        fake_logits: D's logits for the drawn sketch, (B, 1, h, w).
        fake: drawn sketch (B, C, H, W) in [-1, 1].
        sketch: real sketch, like `fake`.
    """
    adversarial = bce(fake_logits, 1.0)
    distance = l1_loss(_wide(fake), _wide(sketch))
    return GeneratorLoss(scale * (adversarial + lambda_l1 * distance), adversarial, distance)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
