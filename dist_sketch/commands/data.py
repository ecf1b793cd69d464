"""`dist-sketch synth`, `pack` and `verify`."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from dist_sketch.core.config import TrackConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.words import tell
from dist_sketch.data.manifest import Fit
from dist_sketch.tracking.wandb_run import is_off, on_request

MOST = {"shard_mb": 10**6, "shard_count": 10**12, "skip_bad": 10**12}  # no more can be read again, nor is of use


@dataclass(frozen=True, kw_only=True)
class SynthCommand:
    """Draw procedural portraits: DIR/{train,val}_{line,sketch}/N.jpg. The same seed always gives the same files."""

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]]
    """Folder for the pairs. Pictures that are there already must be the same; others are never overwritten."""
    count: int = 64
    """Training pairs."""
    val: int = 16
    """Validation pairs, in addition."""
    size: int = 256
    """Width and height, px."""
    seed: int = 0
    """Another seed draws other people."""
    workers: int | None = None
    """Processes; default: one for each core."""

    def run(self) -> int:
        from dist_sketch.data.synthetic import dataset as synth

        synth.write(self.folder, count=self.count, val=self.val, size=self.size, seed=self.seed, workers=self.workers)
        print(f"{self.folder}: {self.count} training and {self.val} validation pairs at {self.size} px")
        return 0


@dataclass(frozen=True, kw_only=True)
class PackCommand:
    """Pack pairs of images into WebDataset shards with a manifest. The same input always gives the same bytes."""

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
    """A folder with train_line/ and train_sketch/ (val_*: validation), or a recipe (name or .toml) with --root."""
    out: Path
    """Folder for the shards."""
    root: Path | None = None
    """Folder that a recipe's paths are relative to."""
    size: int = 256
    """Width and height to which all images are resized, px; a multiple of 64."""
    fit: Fit = "squash"
    """How pages that are not square become squares. squash: the aspect ratio is not kept, as in the paper; pad: with
    margins in the tone of the page's border; crop: the largest square in the middle. A sketch is laid out as its line
    is."""
    invert: bool = False
    """The lines are light on dark: pack them dark on light. Sketches stay as they are."""
    freehand: int | None = None
    """Pack each line as an unsteady hand might have drawn it; the number is a seed. For validation pairs that show how
    a generator copes with anyone's lines; `train --data.freehand` makes such lines by itself."""
    val_fraction: float | None = None
    """Share of the pairs that becomes the validation split if the folders have none (by a stable hash of the name)."""
    labels: Path | None = None
    """JSON file with labels of the pairs, {split: {name: {label: value}}}, which the shards keep, for `report --by`;
    default: SOURCE/annotations.json, if it is there."""
    shard_mb: float = 64
    """Largest size of a shard, MB."""
    shard_count: int = 0
    """Largest number of samples in a shard; 0: no limit."""
    skip_bad: int = 0
    """Number of unusable files that may be left out and listed; with more, the command refuses."""
    force: bool = False
    """Replace the shards that are in --out; refused if anything else lies there."""
    keep: bool = False
    """Keep the shards that are in --out if they are undamaged and hold these pairs at this size."""
    workers: int | None = None
    """Processes; default: one for each core."""
    track: TrackConfig = field(default_factory=on_request)

    def run(self) -> int:
        from dist_sketch.data import pack, recipe

        for name, most in MOST.items():
            if (value := getattr(self, name)) > most:
                raise UserError(f"{name} = {value}: must be at most {most:,}")
        began = time.monotonic()
        source = recipe.load(self.source, self.root, self.val_fraction)
        if self.labels is not None:
            source = replace(source, labels=self.labels)
        pictures = self.size, self.fit, self.invert, self.freehand
        if self.keep and not self.force and pack.holds(self.out, source, *pictures):
            print(f"{self.out}: packed already")
            return 0
        manifest = pack.pack(
            source,
            self.out,
            size=self.size,
            shard_mb=self.shard_mb,
            shard_count=self.shard_count,
            skip_bad=self.skip_bad,
            fit=self.fit,
            invert=self.invert,
            freehand=self.freehand,
            force=self.force,
            workers=self.workers,
        )
        for problem in manifest["skipped"]:
            tell(f"left out: {problem['file']}: {problem['why']}")
        for split, part in manifest["splits"].items():
            print(f"{self.out}: {split}: {part['count']} samples in {len(part['shards'])} shard(s)")
        if not is_off(self.track):
            from dist_sketch.tracking import wandb_jobs

            wandb_jobs.packed(self.out, self.track, manifest, time.monotonic() - began)
        return 0


@dataclass(frozen=True, kw_only=True)
class VerifyCommand:
    """Compare shards with their manifest: counts, lengths, hashes. Exit code 0 if they agree, 2 if not."""

    shards: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SHARDS")]]
    """Folder made by `dist-sketch pack`."""

    def run(self) -> int:
        from dist_sketch.data import looks, manifest
        from dist_sketch.data.verify import verify

        counts = verify(self.shards)
        print(f"{self.shards}: good ({', '.join(f'{k} {v}' for k, v in counts.items())})")
        looks.warn(manifest.read_manifest(self.shards).get("looks", {}))
        return 0
