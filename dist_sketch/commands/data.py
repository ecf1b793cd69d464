"""`dist-sketch synth`, `pack` and `verify`."""

import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from dist_sketch.core.config import TrackConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.places import Address, Place
from dist_sketch.core.words import tell
from dist_sketch.data.layouts import Direction, LayoutName
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
    """A folder of pairs: train_line/ and train_sketch/ (val_*: validation), A|B pictures as pix2pix has them, A/ and
    B/, photo/ and sketch/, or with metadata.csv; or a table of pairs (.csv, .jsonl); or a recipe (name or .toml)
    with --root."""
    out: Place
    """Folder for the shards, or an address to which they are uploaded: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER."""
    push: str = ""
    """Upload the shards in --out to the Hub, too, as the data set USER/NAME, which hf://datasets/USER/NAME reads."""
    root: Path | None = None
    """Folder that a recipe's paths are relative to."""
    layout: LayoutName | None = None
    """How the pairs lie in SOURCE, if it could be more than one."""
    direction: Direction | None = None
    """Which sides are the lines, if no names say so: AtoB (the default): A, or the left halves of A|B pictures."""
    dry_run: bool = False
    """Print what would be packed, and the first ten pairs; write nothing."""
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
    test_fraction: float | None = None
    """Share of the pairs that likewise becomes a test split, on which no weights are chosen."""
    labels: Path | None = None
    """JSON file with labels of the pairs, {split: {name: {label: value}}}, which the shards keep, for `report --by` and
    `train --data.where`;
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
    part: str = ""
    """Pack only part K of N (as in 2/8); other jobs pack the other parts into the same --out, and the same command with
    --merge joins them."""
    merge: bool = False
    """Join the parts that lie in --out; the shards are those that one job would have packed."""
    workers: int | None = None
    """Processes; default: one for each core."""
    track: TrackConfig = field(default_factory=on_request)

    def run(self) -> int:
        if isinstance(self.out, Address):
            return self._pack_to(self.out)
        push = self.push if not (self.dry_run or self.part) else ""
        if push:
            from dist_sketch.sharing import hub_dataset

            hub_dataset.check(push)
        code = self._pack(self.out)
        if push:
            print(hub_dataset.push(self.out, push))
        return code

    def _pack_to(self, address: Address) -> int:
        """Packs into a temporary folder, and uploads that."""
        from dist_sketch.data import upload

        if self.keep or self.part or self.merge or self.push or not is_off(self.track):
            raise UserError(f"{address}: --keep, --part, --merge, --push and --track.wandb need a folder as --out")
        if self.dry_run:
            return self._pack(Path(tempfile.gettempdir()))
        upload.look(address, self.force)
        with tempfile.TemporaryDirectory(prefix="dist_sketch-") as home:
            self._pack(Path(home) / "shards")
            try:
                upload.upload(Path(home) / "shards", address)
            except UserError as e:
                kept = Path(tempfile.mkdtemp(prefix="dist_sketch-packed-")) / "shards"
                (Path(home) / "shards").rename(kept)
                raise UserError(
                    f"{e}. The packed shards are kept in {kept}: copy them there, manifest.json last"
                ) from e
        return 0

    def _pack(self, folder: Path) -> int:
        from dist_sketch.core.part import Part
        from dist_sketch.data import pack, recipe
        from dist_sketch.data.prepare import Pictures

        for name, most in MOST.items():
            if (value := getattr(self, name)) > most:
                raise UserError(f"{name} = {value}: must be at most {most:,}")
        if self.part and self.merge:
            raise UserError("--part and --merge: the merge is a job of its own, after all parts are packed")
        part = Part.parse(self.part) if self.part else None
        began = time.monotonic()
        source = recipe.load(self.source, self.root, self.val_fraction, self.layout, self.direction, self.test_fraction)
        if self.labels is not None:
            source = replace(source, labels=self.labels)
        if self.dry_run:
            pack.check_settings(self.size, self.shard_mb, self.shard_count, self.skip_bad, self.freehand, self.workers)
            pack.dry_run(source, self.skip_bad)
            return 0
        pictures = Pictures(size=self.size, fit=self.fit, invert=self.invert, freehand=self.freehand)
        if self.keep and not self.force and pack.holds(folder, source, pictures):
            print(f"{self.out}: packed already")
            return 0
        if part is not None:
            new = pack.pack_part(
                source,
                folder,
                part,
                pictures=pictures,
                skip_bad=self.skip_bad,
                workers=self.workers,
                force=self.force,
            )
            print(f"{self.out}: part {self.part} is packed{'' if new else ' already'}; --merge joins all parts")
            return 0
        manifest = pack.pack(
            source,
            folder,
            size=self.size,
            shard_mb=self.shard_mb,
            shard_count=self.shard_count,
            skip_bad=self.skip_bad,
            fit=self.fit,
            invert=self.invert,
            freehand=self.freehand,
            force=self.force,
            workers=self.workers,
            merge=self.merge,
        )
        for problem in manifest["skipped"]:
            tell(f"left out: {problem['file']}: {problem['why']}")
        for split, found in manifest["splits"].items():
            print(f"{self.out}: {split}: {found['count']} samples in {len(found['shards'])} shard(s)")
        if not is_off(self.track):
            from dist_sketch.tracking import wandb_jobs

            wandb_jobs.packed(folder, self.track, manifest, time.monotonic() - began)
        return 0


@dataclass(frozen=True, kw_only=True)
class VerifyCommand:
    """Compare shards with their manifest: counts, lengths, hashes. Exit code 0 if they agree, 2 if not."""

    shards: tyro.conf.Positional[Annotated[Place, tyro.conf.arg(metavar="SHARDS")]]
    """Folder made by `dist-sketch pack`, or an address: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, https://HOST/FOLDER,
    hf://datasets/USER/NAME. A comparison that was stopped goes on where it was."""

    def run(self) -> int:
        from dist_sketch.data import looks, manifest
        from dist_sketch.data.verify import verify

        counts = verify(self.shards)
        print(f"{self.shards}: good ({', '.join(f'{k} {v}' for k, v in counts.items())})")
        looks.warn(manifest.read_manifest(self.shards).get("looks", {}))
        return 0
