"""The end of a run: the noise removal is chosen on training pairs (RUN/denoise.json), and W&B gets its table."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_sketch.core import config as cfg
from dist_sketch.core import fileio
from dist_sketch.core.config import DenoiseConfig
from dist_sketch.core.errors import UserError
from dist_sketch.data import pixels
from dist_sketch.inference.calibration import calibrate
from dist_sketch.inference.denoise import denoise
from dist_sketch.metrics import fid_kid, inception
from dist_sketch.model import pretrained
from dist_sketch.model.weights import load_weights
from dist_sketch.tracking import wandb_run
from dist_sketch.tracking.wandb_jobs import COLUMNS, generator, pair_row
from dist_sketch.tracking.wandb_run import WandbRun
from dist_sketch.training.run import Run
from dist_sketch.training.validation import Validation

PAIRS = 24


def choose_noise_removal(run: Run) -> int:
    """Chooses the noise removal for the weights that draw, and sends W&B the validation pairs drawn with them.

    Returns:
        The step of these weights: the last one, or the one that `checkpoint.choose` selected.
    """

    def choose() -> int:
        drawing, with_kid = run.step.drawing, run.config.train.validate_fid
        folder, step = pretrained.find_weights(run.out)
        if step != run.state.step:
            load_weights(pretrained.weights_file(folder), drawing)
        denoise = calibrate_on_training_pairs(run.out, run.validation, drawing, run.ranks.device, with_kid)
        log_pairs(run.tracker.wandb, run.out, run.validation, drawing, denoise)
        return step

    with run.step.averaged():
        return run.ranks.main_decides(choose)


def calibrate_on_training_pairs(
    run: Path, validation: Validation, drawing: nn.Module, device: torch.device, with_kid: bool
) -> DenoiseConfig:
    """Writes RUN/denoise.json: the chosen settings, the number of pairs they were chosen on, and all candidates.

    Args:
        drawing: the generator that draws.
        with_kid: leave out candidates that raise KID, if this machine has the weights of FID's network. If it has none,
            or they cannot be used, the choice is made without KID: the training is done and must end well.
    """
    raw, real = validation.draw_training_pairs(drawing, PAIRS)
    chosen, table, kid = DenoiseConfig(), list[Any](), None
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
    """A function that gives the KID between pictures and `real`, uint8 (3, H, W) each.

    None if this machine has no weights of FID's network.
    """
    weights = inception.find()
    if weights is None:
        return None
    net = inception.load(weights, device)

    def features(images: list[Tensor]) -> NDArray[np.float64]:
        found = inception.features(net, torch.stack([pixels.to_rgb(i) for i in images]))
        return found[2048].numpy().astype(np.float64)

    wanted = features(real)
    return lambda images: fid_kid.kid(features(images), wanted)


def log_pairs(log: WandbRun, run: Path, validation: Validation, drawing: nn.Module, settings: DenoiseConfig) -> None:
    """Sends W&B a table of validation pairs as `drawing` draws them, and the generator. Never fails."""
    if not log.is_on:
        return
    try:
        pairs = validation.draw(drawing, wandb_run.MOST_ROWS)
        rows = [pair_row(p.name, p.line, p.raw, denoise(p.raw, settings), p.real) for p in pairs]
        made = generator(run, pretrained.find_weights(run)[0])
        with TemporaryDirectory() as folder:
            if log.is_online:
                pretrained.export(run, Path(folder) / "generator")
                made = replace(made, path=Path(folder) / "generator")
            log.table("pairs", COLUMNS, rows)
            log.made(made)
    except Exception as e:  # such as a full disk: the run is done and must end well
        print(f"warning: W&B gets no table and no generator ({type(e).__name__}: {e})")
