"""The paper's losses (section 3.4) as pure functions that return named terms; always computed in float32 or better."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, l1_loss

WINDOW = 7  # px, of SSIM


def bce(logits: Tensor, target: float) -> Tensor:
    """Mean binary cross entropy of a whole patch map against one target.

    The same as the paper's sigmoid followed by BCE, but it cannot overflow and works under autocast.
    """
    logits = _wide(logits)
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def generator_loss(
    fake_logits: Tensor, fake: Tensor, sketch: Tensor, lambda_l1: float, lambda_ssim: float, scale: float
) -> dict[str, Tensor]:
    """scale * (BCE(D(line, fake), 1) + lambda_l1 * L1(fake, sketch) + lambda_ssim * (1 - SSIM(fake, sketch))).

    The paper has no SSIM term (lambda_ssim 0); Zhao et al. (2017) proposed it in addition to L1.

    Args:
        fake_logits: D's logits for the drawn sketch, (B, 1, h, w).
        fake: drawn sketch (B, C, H, W) in [-1, 1].
        sketch: real sketch, like `fake`.

    Returns:
        Scalars by the names under which they are logged: the loss, its BCE, its L1 and, if that has a weight, 1 - SSIM.
    """
    adversarial = bce(fake_logits, 1.0)
    distance = l1_loss(_wide(fake), _wide(sketch))
    total = adversarial + lambda_l1 * distance
    terms = {"loss/g_bce": adversarial, "loss/g_l1": distance}
    if lambda_ssim:
        terms["loss/g_ssim"] = 1 - ssim(fake, sketch)
        total = total + lambda_ssim * terms["loss/g_ssim"]
    return terms | {"loss/g": scale * total}


def ssim(fake: Tensor, sketch: Tensor) -> Tensor:
    """Mean structural similarity of (B, C, H, W) in [-1, 1] (Wang et al. 2004), per channel, with uniform windows.

    For training only: uniform windows are cheap to differentiate. Reports and choices use `metrics.similarity.ssim`,
    whose windows are Gaussian.
    """
    x, y = (_wide(i) for i in (fake, sketch))
    mean_x, mean_y, xx, yy, xy = (avg_pool2d(i, WINDOW, stride=1) for i in (x, y, x * x, y * y, x * y))
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    variances = unbiased * (xx - mean_x**2 + yy - mean_y**2)
    covariance = unbiased * (xy - mean_x * mean_y)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # the range of the values is 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
