"""`dist-sketch infer`, `merge` and `evaluate`."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from dist_sketch.core.config import TrackConfig
from dist_sketch.inference.options import InferOptions
from dist_sketch.tracking.wandb_run import is_off


@dataclass(frozen=True, kw_only=True)
class InferCommand:
    """Draw sketches with a trained generator, remove their noise, score them.

    Writes OUT/raw and, with the noise removed, OUT/sketch; scores them where the input has sketches. One process by
    itself; several with `accelerate launch ... -m dist_sketch infer ...`.
    """

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """Run folder, folder of an exported generator, or the name of one that comes with dist_sketch (portrait-128);
    nothing is written to it."""
    input: Path
    """Shards, a folder of images (with or without splits and sketches), or one image."""
    out: Path
    """Output folder."""
    options: Annotated[InferOptions, tyro.conf.arg(name="")] = field(default_factory=InferOptions)
    track: TrackConfig = field(default_factory=TrackConfig)

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch.inference import infer
        from dist_sketch.model import pretrained

        began = time.monotonic()
        result = infer.infer(pretrained.located(self.run_folder), self.input, self.out, self.options)
        if self.options.part:
            return 0  # `merge` will make the scores
        _track(self.out, self.track, seconds=time.monotonic() - began)
        return show_scores(result, self.out)


@dataclass(frozen=True, kw_only=True)
class MergeCommand:
    """Join the parts that separate jobs have drawn (`infer --part K/N`) into one output folder, with its scores."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Output folder of the parts."""
    track: TrackConfig = field(default_factory=TrackConfig)

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch.inference import infer

        result = infer.merge(self.out)
        _track(self.out, self.track)
        return show_scores(result, self.out)


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Score the files of an output folder against its real sketches again: OUT/metrics.json."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Output folder of `dist-sketch infer`."""
    fid_weights: Path | None = None
    """File of FID's Inception weights; default: the file that `dist-sketch weights` finds."""
    track: TrackConfig = field(default_factory=TrackConfig)

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch.inference.scoring import evaluate

        result = evaluate(self.out, self.fid_weights)
        _track(self.out, self.track, again=True)
        return show_scores(result, self.out)


def _track(out: Path, track: TrackConfig, **more: Any) -> None:
    """Logs an output folder to W&B, on rank 0 only."""
    if os.environ.get("RANK", "0") == "0" and not is_off(track):
        from dist_sketch.tracking import wandb_jobs

        wandb_jobs.drawn(out, track, **more)


def show_scores(result: dict[str, Any] | None, out: Path) -> int:
    """Prints the scores, on rank 0 only."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    if result is None:
        print(f"{out}: drawn; the input has no sketches to score them against")
        return 0
    from rich.console import Console

    from dist_sketch.metrics.definitions import scores_table

    Console().print(scores_table(result))
    print(out / "metrics.json")
    return 0
