"""`dist-sketch checkpoint list|verify|export|push`."""

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
    onnx: bool = False
    """Also write generator.onnx, for onnxruntime; needs `pip install dist-sketch[onnx]`. It is compared with PyTorch on
    a few lines; if it draws differently, nothing is written. With --compact its weights are in 8 bits, too."""
    page: bool = False
    """Also write index.html, a page on which anyone draws a face and sees the portrait grow. It opens from a disk, a
    web space or a phone, without a network. Needs `pip install dist-sketch[onnx]`, and npm once. With --compact it is
    half as large."""
    runtime: Path | None = None
    """Folder with the JavaScript packages of the page: node_modules, or what `npm pack` writes; default: npm."""
    runtime_url: str | None = None
    """Address of the folder `dist` of onnxruntime-web on some site. The page loads it from there: it is smaller, but
    needs a network."""

    def run(self) -> int:
        from dist_sketch.model import pretrained
        from dist_sketch.reports.model_card import card
        from dist_sketch.sharing import onnx_file, page

        if not self.page and (self.runtime or self.runtime_url):
            raise UserError("--runtime and --runtime-url are for the page: give --page, too")
        if self.onnx or self.page:
            onnx_file.check_packages()

        def more(model: pretrained.SketchGenerator, weights_sha256: str) -> dict[str, bytes]:
            if self.compact and self.scores and read_infer(self.scores).get("weights_sha256", "") != weights_sha256:
                raise UserError(self._how_to_score())
            name = self.folder.resolve().name
            files = {pretrained.CARD: card(model, name, weights_sha256, self.scores).encode()}
            if self.onnx:
                files[pretrained.ONNX] = onnx_file.to_bytes(model, self.compact)
                print(onnx_file.compare(files[pretrained.ONNX], model, self.compact))
            if self.page:
                html = page.to_html(
                    model,
                    name,
                    compact=self.compact,
                    packages=self.runtime,
                    runtime_url=self.runtime_url,
                    generator=files.get(pretrained.ONNX),
                ).encode()
                files[pretrained.PAGE] = html
                print(f"{pretrained.PAGE}: {len(html) / 1e6:.1f} MB; open it in a browser")
            return files

        model = pretrained.export(pretrained.located(self.folder), self.out, self.step, more, self.compact)
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
class PushCommand:
    """Upload a generator to the Hugging Face Hub: the export, its model card, and ONNX if its packages are there.

    `infer --run user/name` and `SketchGenerator.from_pretrained("user/name")` take it from there. Log in with
    `hf auth login` first, or set HF_TOKEN.
    """

    folder: Run
    """Run folder, folder of an exported generator (with the scores on its model card), or the name of one that comes
    with dist_sketch."""
    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="USER/NAME")]]
    """Repository; made if it is missing. What an earlier push has left there is replaced, anything else is refused."""
    space: bool = False
    """Upload the page on which people draw, too, as a static Space of the same name."""
    runtime: Path | None = None
    """Folder with the JavaScript packages of that page (node_modules); default: they come from npm."""
    private: bool = False
    """Make the repository for yourself alone; one that is there already stays as it is."""
    samples: bool = True
    """Show the run's newest picture of validation pairs (samples/) on the model card. It holds real sketches: check
    that the data's licence allows that."""
    dry_run: bool = False
    """Only list the files that would be uploaded, with their sizes."""

    def run(self) -> int:
        from dist_sketch.sharing import hub

        hub.share(
            self.folder,
            self.name,
            space=self.space,
            packages=self.runtime,
            private=self.private,
            samples=self.samples,
            dry_run=self.dry_run,
        )
        return 0


@dataclass(frozen=True, kw_only=True)
class CheckpointCommand:
    """List or verify a run's checkpoints, or export or upload the generator of one."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[ListCommand, tyro.conf.subcommand("list")]
        | Annotated[VerifyCheckpointsCommand, tyro.conf.subcommand("verify")]
        | Annotated[ExportCommand, tyro.conf.subcommand("export")]
        | Annotated[PushCommand, tyro.conf.subcommand("push")]
    ]

    def run(self) -> int:
        return self.command.run()
