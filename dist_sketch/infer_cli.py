"""`dist-sketch infer`, `merge`, `evaluate` and `report` on the command line."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from dist_sketch.config import Track
from dist_sketch.wandb_log import is_off

INFER = "Draw sketches with a trained generator, remove their noise, score them."


def command() -> Any:
    """The class of `infer`, which needs torch."""
    from dist_sketch.infer import Options

    @dataclass(frozen=True, kw_only=True)
    class Infer:
        """Draw sketches: OUT/raw and, with the noise removed, OUT/sketch; scores where the input has sketches.

        One process as it stands; several with `accelerate launch ... -m dist_sketch infer ...`.
        """

        run_folder: Annotated[Path, tyro.conf.arg(name="run")]
        """Run folder, an exported generator's, or the name of one that comes with dist_sketch (portrait-128); it is
        never written to."""
        input: Path
        """Shards, a folder of images (with or without splits and sketches), or one image."""
        out: Path
        """Output folder."""
        options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)
        track: Track = field(default_factory=Track)

        def run(self) -> int:
            """Runs the command."""
            from dist_sketch import hub, infer

            began = time.monotonic()
            result = infer.infer(hub.located(self.run_folder), self.input, self.out, self.options)
            if self.options.part:
                return 0  # the scores come with `merge`
            _track(self.out, self.track, seconds=time.monotonic() - began)
            return _show(result, self.out)

    return Infer


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Make one output folder of parts that jobs of their own drew (`infer --part K/N`), with the scores of all."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Output folder of all the parts."""
    track: Track = field(default_factory=Track)

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch import infer

        result = infer.merge(self.out)
        _track(self.out, self.track)
        return _show(result, self.out)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score an output folder's files against its real sketches again: OUT/metrics.json."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Output folder of `dist-sketch infer`."""
    fid_weights: Path | None = None
    """File of FID's Inception weights; default: wherever `dist-sketch weights` finds them."""
    track: Track = field(default_factory=Track)

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch import infer

        result = infer.evaluate(self.out, self.fid_weights)
        _track(self.out, self.track, again=True)
        return _show(result, self.out)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write OUT/report.html: scores, curves, faces, on one self-contained page."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Output folder of `dist-sketch infer`."""

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch import report
        from dist_sketch.fileio import read_json

        page = report.build(self.out)
        scores = self.out / "metrics.json"
        _show(read_json(scores) if scores.is_file() else None, self.out)
        print(page)
        return 0


def _track(out: Path, track: Track, **more: Any) -> None:
    """Logs an output folder to W&B, on the first rank alone."""
    if os.environ.get("RANK", "0") == "0" and not is_off(track):
        from dist_sketch import tracked

        tracked.drawn(out, track, **more)


def _show(result: dict[str, Any] | None, out: Path) -> int:
    """Prints the scores, on the first rank alone."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    if result is None:
        print(f"{out}: drawn; the input has no sketches to score them against")
        return 0
    from rich.console import Console

    from dist_sketch import metrics

    Console().print(metrics.table(result))
    print(out / "metrics.json")
    return 0
