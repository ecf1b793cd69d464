"""`dist-sketch checkpoint list|verify|export`."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dist_sketch.core.errors import UserError
from dist_sketch.core.saved import read_infer

Run = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """List a run's checkpoints: step, size, time, and whether all files match their hashes."""

    folder: Run
    """Run folder."""

    def run(self) -> int:
        from rich.console import Console

        from dist_sketch.model import checkpoint

        Console().print(checkpoint.table(checkpoint.entries(self.folder)))
        return 0


@dataclass(frozen=True, kw_only=True)
class VerifyCheckpointsCommand:
    """Compare all files with the sizes and hashes that were saved with them. Exit code 0 or 2."""

    folder: Run
    """Run folder."""
    step: int | None = None
    """Only the checkpoint of this step; default: all."""

    def run(self) -> int:
        from dist_sketch.model import checkpoint

        checkpoint.check(self.folder, self.step)
        return 0


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Write the generator and its model card to a folder, for `infer --run` and `SketchGenerator.from_pretrained`."""

    folder: Run
    """Run folder, or folder of an exported generator; it is not written to, unless --out is inside it."""
    out: Path
    """Folder to write; an earlier export there is replaced, anything else is refused."""
    step: int | None = None
    """Step of the checkpoint to export; default: the one that `infer` draws with."""
    scores: Path | None = None
    """Output folder of an `infer` with these weights; its scores are written into the model card (README.md)."""
    compact: bool = False
    """Store the weights in 8 bits, a quarter of the size. They draw a little differently, so --scores must come from an
    `infer` with such an export: export without --scores, run `infer --run` with it, and export it again onto itself."""

    def run(self) -> int:
        from dist_sketch.model import pretrained
        from dist_sketch.reports.model_card import card

        def make_card(model: pretrained.SketchGenerator, weights_sha256: str) -> str:
            if self.compact and self.scores and read_infer(self.scores).get("weights_sha256", "") != weights_sha256:
                raise UserError(self._how_to_score())
            return card(model, self.folder.resolve().name, weights_sha256, self.scores)

        model = pretrained.export(pretrained.located(self.folder), self.out, self.step, make_card, self.compact)
        print(f"{self.out}: the generator of step {model.step}, for {model.size} px")
        return 0

    def _how_to_score(self) -> str:
        """Weights in 8 bits exist only when they are exported, so it takes three commands."""
        export = "dist-sketch checkpoint export --compact"
        step = "" if self.step is None else f" --step {self.step}"
        run, out = (shlex.quote(str(folder)) for folder in (self.folder, self.out))
        return (
            f"--scores {self.scores}: was drawn with other weights than these in 8 bits, which draw a little "
            f"differently; type `{export} {run}{step} --out {out}`, then `dist-sketch infer --run {out} --input SHARDS "
            f"--out OUT`, then `{export} {out} --out {out} --scores OUT`"
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointCommand:
    """List or verify a run's checkpoints, or export the generator of one."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[ListCommand, tyro.conf.subcommand("list")]
        | Annotated[VerifyCheckpointsCommand, tyro.conf.subcommand("verify")]
        | Annotated[ExportCommand, tyro.conf.subcommand("export")]
    ]

    def run(self) -> int:
        return self.command.run()
