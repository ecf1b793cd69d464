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
from dist_sketch.errors import UserError
from dist_sketch.validation import Validation

PAIRS = 24


def choose(run: Path, validation: Validation, drawing: nn.Module, device: torch.device, with_kid: bool) -> Denoise:
    """Writes RUN/denoise.json: what was chosen, on how many pairs, and all candidates.

    Args:
        drawing: the generator that draws.
        with_kid: leave out what raises KID, where this machine has the weights of FID's network. Without them it goes
            on, whatever is wrong with them: the training is done and must end well.
    """
    raw, real = validation.draw_training_pairs(drawing, PAIRS)
    chosen, table, kid = Denoise(), list[Any](), None
    if len(raw) > 1:
        try:
            kid = kid_from(real, device) if with_kid else None
        except (UserError, OSError) as e:
            print(f"warning: noise removal is chosen without KID ({e})")
        chosen, table = calibrate(raw, real, distance=kid)
    fileio.write_json(
        run / "denoise.json",
        {"denoise": cfg.to_dict(chosen), "pairs": len(raw), "with_kid": kid is not None, "candidates": table},
    )
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
