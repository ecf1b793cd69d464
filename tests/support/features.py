"""Stands for FID's Inception network, which takes most of the time of scoring a few small pictures."""

import torch
from torch import Tensor, nn

from dist_sketch.metrics import inception
from dist_sketch.metrics.inception import DIMS, Weights


class Features(nn.Module):
    """From the pixels of the picture at 8 x 8 px; as many as Inception's, and as different for different pictures."""

    def __init__(self, weights: Weights):
        super().__init__()
        self.weights = weights
        self.waves = nn.Parameter(torch.arange(1.0, 1 + DIMS[-1]), requires_grad=False)

    def forward(self, images: Tensor, most: int = DIMS[-1]) -> dict[int, Tensor]:
        """As `inception.Inception`."""
        pixels = nn.functional.adaptive_avg_pool2d(images, 8).flatten(1).repeat(1, 1 + most // 192)
        return {d: torch.sin(self.waves[:d] * pixels[:, :d]) for d in DIMS if d <= most}


def replace_inception() -> None:
    """From here on FID and KID are those of `Features`. Weights are still looked for, and named in the scores."""
    inception.load = lambda weights, device: Features(weights).to(device)  # type: ignore[assignment, return-value]
