"""The end of a run: noise removal is chosen on training pairs (RUN/denoise.json), W&B gets its table, a last word."""

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
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
from dist_sketch.metrics.definitions import OPTIMISTIC, scores_text
from dist_sketch.model import checkpoint, pretrained
from dist_sketch.model.denoise import denoise
from dist_sketch.model.weights import load_weights
from dist_sketch.tracking import wandb_run
from dist_sketch.tracking.tracker import read_metrics
from dist_sketch.tracking.wandb_jobs import COLUMNS, generator, pair_row
from dist_sketch.training.progress import counted
from dist_sketch.training.run import Run

PAIRS = 24


class Asked(Exception):
    """The run was asked to stop. All of it is saved; only the choice of its noise removal has to be made again."""


def choose_noise_removal(run: Run) -> int | None:
    """Chooses the noise removal for the weights that draw, and sends W&B the validation pairs drawn with them.

    RUN/denoise.json holds the chosen settings, the number of pairs they were chosen on, and all candidates. Those that
    raise KID are left out, if KID is wanted (`train.validate_fid`) and this machine has the weights of FID's network.

    Returns:
        The step of these weights: the last one, or the one that `checkpoint.choose` selected. None if the run was asked
        to stop in the meantime: the same command makes the choice again.
    """

    run.watch.note("the choice of the noise removal")

    def choose() -> int | None:
        folder, step = pretrained.find_weights(run.out)
        if step != run.state.step:
            load_weights(pretrained.weights_file(folder), run.step.drawing)
        try:
            pairs = min(PAIRS, run.facts["pairs"])
            with counted(f"choosing the noise removal on {pairs} training pair(s)", pairs) as done:
                chosen = calibrated(run, done)
            if run.tracker.wandb.is_on:
                log_pairs(run, folder, chosen)
        except Asked:
            return None
        return step

    with run.step.averaged():
        return run.ranks.main_decides(choose)


def calibrated(run: Run, done: Callable[[int], None]) -> DenoiseConfig:
    """Writes RUN/denoise.json; returns the settings.

    Args:
        done: is told how many pairs are through.

    Raises:
        Asked: the run was asked to stop.
    """

    def told(pairs: int) -> None:
        refuse_to_go_on(run)
        run.watch.still()
        done(pairs)

    raw, real = list[Tensor](), list[Tensor]()
    for _, drawn, sketch in run.validation.draw_training_pairs(run.step.drawing, PAIRS):
        raw.append(pixels.to_rgb(drawn))
        real.append(pixels.to_rgb(sketch))
        told(0)
    chosen, table, kid = DenoiseConfig(), list[Any](), None
    if len(raw) > 1:
        try:
            if run.config.train.validate_fid:
                kid = kid_from(real, run.ranks.device, partial(told, len(raw)))
        except (UserError, OSError) as e:  # the training is done and must end well
            print(f"warning: noise removal is chosen without KID ({e})")
        chosen, table = calibrate(raw, real, kid, told)
    found = {"denoise": to_dict(chosen), "pairs": len(raw), "with_kid": kid is not None, "candidates": table}
    fileio.write_json(run.out / "denoise.json", found)
    return chosen


def refuse_to_go_on(run: Run) -> None:
    """Raises `Asked` if the run was asked to stop."""
    if run.stop.asked:
        raise Asked


def kid_from(
    real: list[Tensor], device: torch.device, told: Callable[[], None] = lambda: None
) -> Callable[[list[Tensor]], float] | None:
    """A function that gives the KID between pictures and `real`, uint8 (3, H, W) each.

    None if this machine has no weights of FID's network.

    Args:
        told: is called before each picture; it may raise, to stop.
    """
    weights = inception.find()
    if weights is None:
        return None
    net = inception.load(weights, device)

    def features(images: list[Tensor]) -> fid_kid.Array:
        found = []
        for image in images:
            told()
            found.append(inception.features(net, pixels.to_rgb(image)[None])[2048])
        return torch.cat(found).double().numpy()

    wanted = cache(lambda: features(real))  # not needed if gray alone is the best
    return lambda images: fid_kid.kid(features(images), wanted())


def log_pairs(run: Run, weights: Path, settings: DenoiseConfig) -> None:
    """Sends W&B a table of validation pairs and the generator, whose `weights` are in this folder.

    Nothing that goes wrong there is an error. It raises `Asked` if the run was asked to stop.
    """
    log = run.tracker.wandb
    try:
        rows = []
        with counted("drawing validation pairs for W&B", wandb_run.MOST_ROWS) as done:
            for s, raw, real in run.validation.draw(run.step.drawing, wandb_run.MOST_ROWS):
                refuse_to_go_on(run)
                rows.append(pair_row(s.name, s.line, raw, denoise(raw, settings), real))
                done(len(rows))
        made = generator(run.out, weights)
        with TemporaryDirectory() as folder:
            if log.is_online:
                pretrained.export(run.out, Path(folder) / "generator")
                made = replace(made, path=Path(folder) / "generator")
            if run.config.checkpoint.choose != "last":
                log.summary({"note": f"val: {OPTIMISTIC}"})
            log.table("pairs", COLUMNS, rows)
            log.made(made)
    except Asked:
        raise
    except Exception as e:  # such as a full disk: the run is done and must end well
        print(f"warning: W&B gets no table and no generator ({type(e).__name__}: {e})")


def say_what_is_there(run: Run, step: int) -> None:
    """Prints how the run ended: the scores of the weights that draw, of step `step`, where things lie, what is next."""
    c, name, quoted = run.config, run.out.resolve().name, shlex.quote(str(run.out))
    print(f"{run.out}: finished, {c.train.epochs} epochs, {run.state.step:,} steps; the weights of step {step:,} draw")
    scored = {r["step"]: r for r in read_metrics(run.out) if r["kind"] == "val"}
    if text := scores_text(scored.get(step, {})):
        print(f"  {text}" + (f". {OPTIMISTIC}" if c.checkpoint.choose != "last" else ""))
    else:
        print("  these weights were not scored in training")
    print(f"  weights and their state: {checkpoint.folder(run.out, step)}")
    print(f"  noise removal: {run.out / 'denoise.json'}")
    if (page := run.out / "index.html").is_file():
        print(f"  the run's page: {page}")
    shards = str(c.data.shards).removeprefix(f"{Path.cwd()}{os.sep}")
    print(f"next: dist-sketch infer --run {quoted} --input {shlex.quote(shards)} --out {shlex.quote(f'out/{name}')}")
