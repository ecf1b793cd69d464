"""A trained generator by itself: found in a run, exported, loaded and saved through huggingface_hub's mixin.

DIR/
    generator.safetensors  the weights that draw (the moving average if the run has one), float32 or 8 bits
    config.json            {"config": the run's settings, "facts": facts such as "size" and "step"}; an export leaves
                           out the path of the shards and the names that W&B gets
    denoise.json           noise removal, chosen at the end of a run; missing if the run has none
    README.md              the model card of an export
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NotRequired, Self, TypedDict, overload

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from PIL.Image import Image
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from dist_sketch.core import fileio, folders, saved
from dist_sketch.core.config import DenoiseConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.toml_dataclass import checked
from dist_sketch.data.manifest import Fit
from dist_sketch.model import checkpoint, drawing, from_hub, networks
from dist_sketch.model.drawing import Picture, Pictures, Size
from dist_sketch.model.weights import check_weights, load_weights, to_8bit

CARD, CARD_MARKER = "README.md", "<!-- Written by dist-sketch checkpoint export, which may replace it. -->"
FILES = (WEIGHTS, SETTINGS, DENOISE) = ("generator.safetensors", "config.json", "denoise.json")
ADDED = (ONNX, PAGE) = ("generator.onnx", "index.html")  # beside them, by `checkpoint export` on request


def located(run: Path, **download: Any) -> Path:
    """The folder that a user means with `run`: itself if it exists, else the trained generator of that name that comes
    with dist_sketch, else the download of the Hub's repository user/name, in the Hub's cache.

    Args:
        download: options of `from_hub.download`.

    Raises:
        UserError: it looks like user/name, and the Hub has no such repository, or cannot be reached.
    """
    shipped = [home / run for home in fileio.homes("launch") if (home / run / WEIGHTS).is_file()]
    if run.exists() or shipped:
        return run if run.exists() else shipped[0]
    return from_hub.download(run.as_posix(), [*FILES, CARD], **download) if from_hub.is_name(run) else run


def find_weights(run: Path, step: int | None = None) -> tuple[Path, int]:
    """The folder of the weights that draw, in a run or in an exported generator's folder, and their step.

    Raises:
        UserError: no such folder, or no complete checkpoint (of that step).
    """
    if not (run / SETTINGS).is_file():
        names = sorted({p.parent.name for home in fileio.homes("launch") for p in home.glob(f"*/{WEIGHTS}")})
        raise UserError(
            f"{run}: is neither a run nor an exported generator (no {SETTINGS}), nor one of those that come with "
            f"dist_sketch ({', '.join(names)})"
        )
    if (run / WEIGHTS).is_file():
        exported = _facts(saved.read_settings(run), run).get("step", 0)
        if step not in (None, exported):
            raise UserError(f"--step {step}: {run} is an exported generator of step {exported}")
        return run, exported
    folder = checkpoint.chosen(run) if step is None else checkpoint.folder(run, step)
    if folder is not None and not folder.is_dir():
        there = ", ".join(str(checkpoint.step_of(f)) for f in reversed(checkpoint.folders_of(run)))
        raise UserError(f"--step {step}: {run} has no such checkpoint; there are {there or 'none'}")
    if folder is None:
        raise UserError(f"{run}: has no complete checkpoint, and no {WEIGHTS}")
    if step is not None and (problems := checkpoint.verify(folder)):
        raise UserError(f"--step {step}: {'; '.join(problems)}")
    return folder, checkpoint.step_of(folder)


def weights_file(folder: Path) -> Path:
    """The file of the weights that draw, in the folder of a checkpoint or an export: the moving average if any."""
    average = folder / "ema.safetensors"
    return average if average.is_file() else folder / WEIGHTS


class NetworkFacts(TypedDict):
    """The facts without which there is no network."""

    size: saved.Side
    fit: NotRequired[Fit]  # if it is not squash


def _facts(contents: dict[str, Any], folder: Path) -> dict[str, Any]:
    facts = contents.get("facts") or {}
    if "size" not in facts:
        raise UserError(f"{folder / SETTINGS}: is not the configuration of a run or of an exported generator")
    checked(NetworkFacts, facts, f"{folder / SETTINGS}: facts")
    return dict(facts)


def fit_of(run: Path) -> Fit:
    """How the pages became squares that the generator of a run or an export has learnt from; squash if it is unknown.

    Raises:
        UserError: the configuration in the folder is damaged.
    """
    contents = saved.read_settings(run, {})
    fit: Fit = _facts(contents, run).get("fit", "squash") if contents else "squash"
    return fit


class SketchGenerator(
    nn.Module, ModelHubMixin, library_name="dist_sketch", pipeline_tag="image-to-image", tags=["pix2pix", "sketch"]
):
    """The generator that draws, with its `config`, `size` (px), `step` and `denoise`, and whether its weights were
    `chosen` by their scores.

    It uses the generic mixin, not the one for PyTorch, which falls back to pickled weights and ignores missing ones.

    Args:
        contents: of config.json.
        calibration: contents of denoise.json.
        folder: where these files are, for error messages.

    Raises:
        UserError: these are not the contents that `train` and `export` write.
    """

    def __init__(self, contents: dict[str, Any], calibration: dict[str, Any] | None = None, folder: Path = Path()):
        super().__init__()
        facts = _facts(contents, folder)
        self.saved, self.calibration = contents, calibration
        self.config = saved.config_of(contents, folder)
        self.size: int = facts["size"]
        self.fit: Fit = facts.get("fit", "squash")
        self.step: int = facts.get("step", 0)
        self.chosen: bool = facts.get("chosen", False)
        self.denoise = DenoiseConfig()
        if calibration is not None:
            self.denoise = saved.denoise_of(calibration, folder)
        self.net = networks.generator(self.config)
        self.compact = False  # when saved
        self.card = ""  # README.md of the export that it was loaded from

    def forward(self, line: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), both in [-1, 1]; H and W multiples of 64."""
        if not isinstance(line, Tensor):
            raise UserError("a generator takes tensors (B, C, H, W) in [-1, 1]; its method draw takes pictures")
        return self.net(line)

    @overload
    def draw(
        self, image: Pictures, *, size: Size = ..., denoise: bool = ..., fit: Fit | None = ..., invert: bool = ...
    ) -> list[Image]: ...
    @overload
    def draw(
        self, image: Picture, *, size: Size = ..., denoise: bool = ..., fit: Fit | None = ..., invert: bool = ...
    ) -> Image: ...
    def draw(
        self,
        image: Picture | Pictures,
        *,
        size: Size = "network",
        denoise: bool = True,
        fit: Fit | None = None,
        invert: bool = False,
    ) -> Image | list[Image]:
        """Draws portraits from line pictures, on the device of the generator: the pictures that `infer` writes.

        Args:
            image: a picture of any mode, a path, or a list of these. It is turned as its EXIF says.
            size: of the portrait: "network" (`self.size` px), "source" (as the line), or px of the long side.
            denoise: remove noise as the run has chosen (`self.denoise`).
            fit: how a page that is not square becomes the network's square: "squash", "pad" or "crop"; None: as the
                pages did that the generator has learnt from (`self.fit`).
            invert: the lines are light on dark.

        Returns:
            A picture for a picture, a list for a list; mode "L" after noise removal in gray, else "RGB".

        Raises:
            UserError: a file is missing, damaged or unclear, or an option has a wrong value.
        """
        found = drawing.draw(
            self.net,
            image if isinstance(image, list | tuple) else [image],
            px=self.size,
            channels=self.config.data.channels,
            size=size,
            clean=self.denoise if denoise else None,
            how=fit or self.fit,
            invert=invert,
        )
        return found if isinstance(image, list | tuple) else found[0]

    @classmethod
    def load(cls, run: Path, weights: tuple[Path, int] | None = None) -> Self:
        """Builds the generator from the folder of a run or an export alone; on the CPU, in eval mode.

        Args:
            weights: a result of `find_weights`; None: the weights that draw.

        Raises:
            UserError: the folder has no generator, or its weights are damaged or belong to another network.
        """
        folder, step = weights or find_weights(run)
        contents, calibration = saved.read_settings(run), saved.read_calibration(run)
        facts, config = _facts(contents, run), saved.config_of(contents, run)
        contents["facts"] = facts | {"step": step}
        if status := saved.read_status(run):  # a run; in an export this was stored when it was written
            draws = status.get("draws", status.get("best"))  # the first only when the run has ended
            contents["facts"]["chosen"] = config.checkpoint.choose != "last" and draws == step
        with torch.device("meta"):  # before a foreign configuration can take memory
            check_weights(weights_file(folder), networks.generator(config))
        model = cls(contents, calibration, run)
        load_weights(weights_file(folder), model.net)
        model.card = read_card(run)
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Loads a generator from an export, a run, by the name of a shipped one, or from a repository of the Hub.

        Args:
            pretrained_model_name_or_path: an existing folder, else a shipped name, else the name of a repository.
            options: for the download: revision, token, cache_dir, local_files_only, force_download.

        Raises:
            UserError: as `load` and `located`.
        """
        return cls.load(located(fileio.path_of(pretrained_model_name_or_path), **options))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes the files of an export into a folder, with float32 weights in standard memory layout.

        Args:
            save_directory: created if missing; other files there are left alone.
            options: of the mixin, for the Hub; with any of them the model card is written, too.

        Raises:
            UserError: the disk is full or the folder cannot be written; or there is no model card.
        """
        if options:
            return super().save_pretrained(fileio.path_of(save_directory), **options)
        self._save_pretrained(fileio.path_of(save_directory))
        return None

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """The card of the export that this generator was loaded from; the mixin's own would tell neither data nor
        licence.

        Raises:
            UserError: it was loaded from a run, which has no card.
        """
        if not self.card:
            raise UserError(
                "this generator has no model card, because it does not come from an export: make one with `dist-sketch "
                "checkpoint export RUN --out FOLDER` and load that, or type `dist-sketch checkpoint push RUN user/name`"
            )
        return ModelCard(self.card)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the files of an export, with its model card, to the repository user/name; makes it if needed.

        Args:
            options: of `huggingface_hub.ModelHubMixin.push_to_hub`, such as private, token, branch, commit_message.

        Returns:
            The address of the commit.

        Raises:
            UserError: there is no model card, nobody is logged in, the Hub refuses it or cannot be reached.
        """
        self.generate_model_card()  # before a repository is made
        with from_hub.hub_errors(f"{repo_id}: cannot be uploaded"):
            return super().push_to_hub(repo_id, **options)

    def stored(self, compact: bool) -> dict[str, Tensor]:
        """The weights as a file holds them: in float32 and standard memory layout, or in 8 bits (`weights.to_8bit`)."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.net.state_dict().items()}
        plain = {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in tensors.items()}
        return to_8bit(plain) if compact else plain

    def _save_pretrained(self, save_directory: Path) -> None:
        fileio.write_atomic(save_directory / WEIGHTS, to_bytes(self.stored(self.compact)))
        if self.calibration is not None:
            fileio.write_json(save_directory / DENOISE, self.calibration)
        else:
            (save_directory / DENOISE).unlink(missing_ok=True)
        settings = self.saved["config"]
        # Paths and names of the user's surroundings are nobody else's business.
        neutral = {"data": {"shards": None}, "track": {"project": "dist_sketch", "group": "", "name": ""}}
        anywhere = settings | {part: settings.get(part, {}) | values for part, values in neutral.items()}
        if "init_from" in settings:  # `began_with` in the facts tells its name
            anywhere["init_from"] = None
        fileio.write_json(save_directory / SETTINGS, self.saved | {"config": anywhere})


def export(
    run: Path,
    out: Path,
    step: int | None = None,
    more: Callable[[SketchGenerator, str], dict[str, bytes]] | None = None,
    compact: bool = False,
) -> SketchGenerator:
    """Writes the generator that draws, or that of the checkpoint of `step`, to the folder `out`, whole or not at all.

    Args:
        compact: write the weights in 8 bits.
        more: a function that returns further files, such as the model card (README.md), by their names, for the
            generator and the hash of its weights.

    Raises:
        UserError: there is no complete checkpoint (of that step), `out` has other files, or cannot be written.
    """
    _check_out(out)
    weights = find_weights(run, step)
    model = SketchGenerator.load(run, weights)
    model.compact = compact
    try:
        with folders.replaced(out, lambda: _check_out(out)) as folder:
            model.save_pretrained(folder)
            if more is not None:  # rounded weights draw a little differently from those that they were made of
                drawing = weights_file(folder if compact else weights[0])
                for name, contents in more(model, fileio.sha256(drawing)).items():
                    fileio.write_atomic(folder / name, contents)
            if not {WEIGHTS, SETTINGS} <= {p.name for p in folder.iterdir()}:
                raise UserError(f"{folder}: was emptied by another process before it was complete; start this again")
    except OSError as e:
        raise UserError(f"{out}: cannot be written ({e.strerror})") from e
    return model


def read_card(folder: Path) -> str:
    """The model card in a folder, if there is one that `export` has written; else empty."""
    with suppress(OSError):
        text = fileio.read_regular(folder / CARD, fileio.SMALL).decode(errors="replace")
        return text if CARD_MARKER in text else ""
    return ""


def _check_out(out: Path) -> None:
    if not os.path.lexists(out):
        return
    names = {p.name for p in out.iterdir()} if out.is_dir() else {out.name}
    if read_card(out):
        names.discard(CARD)
    if names and not ({WEIGHTS, SETTINGS} <= names <= {*FILES, *ADDED}):
        other = ", ".join(sorted(names - {*FILES, *ADDED})[:3]) or "an incomplete one"
        raise UserError(f"{out}: is there already and not an earlier export (it holds {other}); choose another --out")
    if names:
        _facts(saved.read_settings(out), out)  # others have files of these names, too
