"""`dist-sketch pack` and `verify` on the command line."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dist_sketch.core.config import TrackConfig
from dist_sketch.core.errors import UserError
from dist_sketch.tracking.wandb_run import is_off

if TYPE_CHECKING:
    from dist_sketch.data.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class PackCommand:
    """Pack pairs of images into WebDataset shards with a manifest; the same input gives the same bytes."""

    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
    """A folder with train_line/ and train_sketch/ (val_*: validation), or a recipe (name or .toml) with --root."""
    out: Path
    """Folder of the shards."""
    root: Path | None = None
    """Folder that a recipe's paths are relative to."""
    size: int = 256
    """Width and height that all images are resized to, px; a multiple of 64. The aspect is not kept (the paper's)."""
    val_fraction: float | None = None
    """Share of the pairs that becomes the validation split where the folders give none (stable hash of the name)."""
    shard_mb: float = 64
    """Largest shard, MB."""
    shard_count: int = 0
    """Most samples in a shard; 0: no limit."""
    skip_bad: int = 0
    """How many unusable files may be left out (and listed) before the command refuses."""
    force: bool = False
    """Replace the shards that lie in --out."""
    keep: bool = False
    """Leave the shards that lie in --out as they are, if they are good and of these pairs and this size."""
    workers: int | None = None
    """Processes; default: one a core."""
    track: TrackConfig = field(default_factory=TrackConfig)

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch.data import pack, recipe

        began = time.monotonic()
        source = recipe.load(self.source, self.root, self.val_fraction)
        if self.keep and not self.force and kept(source, self.out, self.size):
            print(f"{self.out}: packed already")
            return 0
        manifest = pack.pack(
            source,
            self.out,
            size=self.size,
            shard_mb=self.shard_mb,
            shard_count=self.shard_count,
            skip_bad=self.skip_bad,
            force=self.force,
            workers=self.workers,
        )
        for problem in manifest["skipped"]:
            print(f"left out: {problem['file']}: {problem['why']}")
        for split, part in manifest["splits"].items():
            print(f"{self.out}: {split}: {part['count']} samples in {len(part['shards'])} shard(s)")
        if not is_off(self.track):
            from dist_sketch.tracking import wandb_jobs

            wandb_jobs.packed(self.out, self.track, manifest, time.monotonic() - began)
        return 0


def kept(recipe: "Recipe", out: Path, size: int) -> bool:
    """Whether good shards of these pairs lie in `out` already.

    Raises:
        UserError: they are damaged, or hold other pairs or another size.
    """
    from dist_sketch.data import pack
    from dist_sketch.data.manifest import MANIFEST, read_manifest
    from dist_sketch.data.recipe import pairs

    if not (out / MANIFEST).is_file():
        return False
    manifest = read_manifest(out)
    try:
        pack.verify(out)
    except UserError as e:
        raise UserError(f"{e}; --force packs them anew") from e
    there = {(split, key) for split, part in manifest["splits"].items() for key in part["index"]["key"]}
    found, _ = pairs(recipe)
    left_out = len(manifest["skipped"])
    if manifest["size"] != size or len({(p.split, p.key) for p in found} - there) > left_out or len(there) > len(found):
        raise UserError(
            f"{out}: holds shards of other pairs or of another size ({len(there)} at {manifest['size']} px, asked for: "
            f"{len(found)} at {size} px); --force replaces them"
        )
    return True


@dataclass(frozen=True, kw_only=True)
class VerifyCommand:
    """Compare shards with their manifest: counts, lengths, hashes. Exit code 0 or 2."""

    shards: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="SHARDS")]]
    """Folder made by `dist-sketch pack`."""

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch.data import pack

        counts = pack.verify(self.shards)
        print(f"{self.shards}: good ({', '.join(f'{k} {v}' for k, v in counts.items())})")
        return 0
