"""The end of a run: the noise removal is chosen on training pairs (RUN/denoise.json), and W&B gets its table."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dist_sketch.core import fileio
from dist_sketch.core.config import DenoiseConfig, to_dict
from dist_sketch.core.errors import UserError
from dist_sketch.data import pixels
from dist_sketch.inference.calibration import calibrate
from dist_sketch.metrics import fid_kid, inception
from dist_sketch.model import pretrained
from dist_sketch.model.denoise import denoise
from dist_sketch.model.weights import load_weights
from dist_sketch.tracking import wandb_run
from dist_sketch.tracking.wandb_jobs import COLUMNS, generator, pair_row
from dist_sketch.training.run import Run

PAIRS = 24


def choose_noise_removal(run: Run) -> int:
    """Chooses the noise removal for the weights that draw, and sends W&B the validation pairs drawn with them.

    RUN/denoise.json holds the chosen settings, the number of pairs they were chosen on, and all candidates. Those that
    raise KID are left out, if KID is wanted (`train.validate_fid`) and this machine has the weights of FID's network.

    Returns:
        The step of these weights: the last one, or the one that `checkpoint.choose` selected.
    """

    def choose() -> int:
        folder, step = pretrained.find_weights(run.out)
        if step != run.state.step:
            load_weights(pretrained.weights_file(folder), run.step.drawing)
        pairs = run.validation.draw_training_pairs(run.step.drawing, PAIRS)
        raw, real = [pixels.to_rgb(r) for _, r, _ in pairs], [pixels.to_rgb(r) for _, _, r in pairs]
        chosen, table, kid = DenoiseConfig(), list[Any](), None
        if len(pairs) > 1:
            try:
                kid = kid_from(real, run.ranks.device) if run.config.train.validate_fid else None
            except (UserError, OSError) as e:  # the training is done and must end well
                print(f"warning: noise removal is chosen without KID ({e})")
            chosen, table = calibrate(raw, real, distance=kid)
        found = {"denoise": to_dict(chosen), "pairs": len(pairs), "with_kid": kid is not None, "candidates": table}
        fileio.write_json(run.out / "denoise.json", found)
        if run.tracker.wandb.is_on:
            log_pairs(run, folder, chosen)
        return step

    with run.step.averaged():
        return run.ranks.main_decides(choose)


def kid_from(real: list[Tensor], device: torch.device) -> Callable[[list[Tensor]], float] | None:
    """A function that gives the KID between pictures and `real`, uint8 (3, H, W) each.

    None if this machine has no weights of FID's network.
    """
    weights = inception.find()
    if weights is None:
        return None
    net = inception.load(weights, device)

    def features(images: list[Tensor]) -> fid_kid.Array:
        return inception.features(net, torch.stack([pixels.to_rgb(i) for i in images]))[2048].double().numpy()

    wanted = features(real)
    return lambda images: fid_kid.kid(features(images), wanted)


def log_pairs(run: Run, weights: Path, settings: DenoiseConfig) -> None:
    """Sends W&B a table of validation pairs and the generator, whose `weights` are in this folder. Never fails."""
    log = run.tracker.wandb
    try:
        pairs = run.validation.draw(run.step.drawing, wandb_run.MOST_ROWS)
        rows = [pair_row(s.name, s.line, raw, denoise(raw, settings), real) for s, raw, real in pairs]
        made = generator(run.out, weights)
        with TemporaryDirectory() as folder:
            if log.is_online:
                pretrained.export(run.out, Path(folder) / "generator")
                made = replace(made, path=Path(folder) / "generator")
            log.table("pairs", COLUMNS, rows)
            log.made(made)
    except Exception as e:  # such as a full disk: the run is done and must end well
        print(f"warning: W&B gets no table and no generator ({type(e).__name__}: {e})")
