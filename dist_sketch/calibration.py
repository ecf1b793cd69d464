"""The choice of a trained generator's noise removal, on training pairs as it draws them now; RUN/denoise.json."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_sketch import config as cfg
from dist_sketch import fileio, inception, metrics, pixels
from dist_sketch.denoise import Denoise, calibrate
from dist_sketch.validation import Validation

PAIRS = 24


def choose(run: Path, validation: Validation, drawing: nn.Module, device: torch.device, with_kid: bool) -> Denoise:
    """Writes RUN/denoise.json: what was chosen, on how many pairs, and all candidates.

    Args:
        drawing: the generator that draws.
        with_kid: leave out what raises KID, where this machine has the weights of FID's network.
    """
    raw, real = validation.draw_training_pairs(drawing, PAIRS)
    chosen, table = Denoise(), list[Any]()
    if len(raw) > 1:
        chosen, table = calibrate(raw, real, distance=kid_from(real, device) if with_kid else None)
    fileio.write_json(run / "denoise.json", {"denoise": cfg.to_dict(chosen), "pairs": len(raw), "candidates": table})
    return chosen


def kid_from(real: list[Tensor], device: torch.device) -> Callable[[list[Tensor]], float] | None:
    """KID of pictures from `real`, uint8 (3, H, W) each; None if this machine has no weights of FID's network."""
    weights = inception.find()
    if weights is None:
        return None
    net = inception.load(weights, device)

    def features(images: list[Tensor]) -> NDArray[np.float64]:
        found = inception.features(net, torch.stack([pixels.to_rgb(i) for i in images]))
        return found[2048].numpy().astype(np.float64)

    wanted = features(real)
    return lambda images: metrics.kid(features(images), wanted)
