"""What W&B is told at the end of each job: pairs side by side with their scores, and what was made of what."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from dist_sketch import hub, metrics, pack, pixels, recipe, wandb_log
from dist_sketch.config import Track
from dist_sketch.denoise import Denoise, denoise
from dist_sketch.errors import UserError
from dist_sketch.fileio import read_json
from dist_sketch.track import revision, versions
from dist_sketch.validation import Validation
from dist_sketch.wandb_log import Artifact, Log

COLUMNS = ("name", "line", "raw", "denoised", "real", "raw/ssim", "denoised/ssim", "raw/l1", "denoised/l1")
SCORES = ("ssim", "l1", "psnr", "fid_64", "fid_192", "fid_768", "fid_2048", "kid")


def generator(run: Path, weights: Path) -> Artifact:
    """The generator of a run, or of an export, by its id and the hash of the file that holds what draws.

    Args:
        weights: the checkpoint's folder, or the export's.
    """
    run_id = read_json(run / hub.SETTINGS)["facts"].get("run_id", "unknown")
    return wandb_log.model(run_id, hub.weights_sha256(weights))


def after_training(log: Log, run: Path, validation: Validation, drawing: nn.Module, settings: Denoise) -> None:
    """Validation pairs as `drawing` draws them, and the generator that draws. Never fails."""
    if not log.is_on:
        return
    try:
        pairs = validation.draw(drawing, wandb_log.MOST_ROWS)
        rows = [_row(p.name, p.line, p.raw, denoise(p.raw, settings), p.real) for p in pairs]
        made = generator(run, hub.find_weights(run)[0])
        with TemporaryDirectory() as folder:
            if log.is_online:
                hub.export(run, Path(folder) / "generator")
                made = replace(made, path=Path(folder) / "generator")
            log.closing()
            log.table("pairs", COLUMNS, rows)
            log.made(made)
    except Exception as e:  # a full disk, say: the run is done and must end well
        print(f"warning: W&B gets no table and no generator ({type(e).__name__}: {e})")


def drawn(out: Path, track: Track, *, seconds: float | None = None, again: bool = False) -> None:
    """Logs an output folder of `infer`: scores, first pairs, and the generator that drew it. Never fails.

    Args:
        seconds: that the drawing took.
        again: it was logged before: this goes to the same run.
    """
    if wandb_log.is_off(track):
        return
    try:
        about = read_json(out / "infer.json")
        scores = out / "metrics.json"
        result = read_json(scores) if scores.is_file() else None
        names = about.pop("names")
        settings = {**about, "images": len(names), "code": revision(), "versions": versions()}
        if result is not None:
            settings["scored"] = result["settings"]
        with wandb_log.job(out, track, kind="infer", settings=settings, uses=_used(about), again=again) as log:
            if seconds is not None:
                log.summary({"speed/images_per_s": len(names) / seconds})
            if result is None or not log.is_on:
                return
            shown = {f"{kind}/{key}": result[kind][key] for kind in ("raw", "denoised") for key in SCORES}
            log.summary({k: v for k, v in shown.items() if v is not None})
            log.table("pairs", COLUMNS, [_row(n, *_images(out, about, n)) for n in names[: wandb_log.MOST_ROWS]])
    except Exception as e:
        print(f"warning: W&B gets no log of {out} ({type(e).__name__}: {e})")


def _used(about: dict[str, Any]) -> list[Artifact]:
    """What drew an output, and the shards that it drew from; as far as they are still there."""
    found = []
    with suppress(OSError, UserError, KeyError):
        run = Path(about["run"])
        found.append(generator(run, hub.find_weights(run, about["step"])[0]))
    with suppress(OSError, UserError):
        source = Path(about["input"])
        found.append(wandb_log.dataset(source, pack.manifest_hash(source)))
    return found


def _images(out: Path, about: dict[str, Any], name: str) -> list[Tensor]:
    suffix = {"line": "png", "raw": about["format"], "sketch": about["format"], "real": "png"}
    files = [out / folder / f"{name}.{end}" for folder, end in suffix.items()]
    images = [pixels.from_image(recipe.read_image(file), 3) for file in files]
    return [pixels.resize(i, about["size"], about["size"]) for i in images]


def packed(shards: Path, track: Track, manifest: dict[str, Any], seconds: float) -> None:
    """Logs a folder of new shards, the run's artifact. Never fails."""
    if wandb_log.is_off(track):
        return
    try:
        settings = {k: manifest[k] for k in ("size", "recipe", "license", "settings")}
        settings |= {"manifest_sha256": pack.manifest_hash(shards), "code": revision(), "versions": versions()}
        with wandb_log.job(shards, track, kind="pack", settings=settings) as log:
            found = {"pack/left_out": len(manifest["skipped"]), "pack/seconds": seconds}
            for split, part in manifest["splits"].items():
                found[f"{split}/samples"] = part["count"]
                found[f"{split}/shards"] = len(part["shards"])
                found[f"{split}/mb"] = sum(s["bytes"] for s in part["shards"]) / 1e6
            log.summary(found)
            log.made(wandb_log.dataset(shards, settings["manifest_sha256"]))
    except Exception as e:
        print(f"warning: W&B gets no log of {shards} ({type(e).__name__}: {e})")


def _row(name: str, line: Tensor, raw: Tensor, clean: Tensor, real: Tensor) -> list[Any]:
    images = [pixels.to_rgb(i) for i in (line, raw, clean, real)]
    scores = [score(drawn, images[3]) for score in (metrics.ssim, metrics.l1) for drawn in images[1:3]]
    return [name, *(i.permute(1, 2, 0).numpy() for i in images), *scores]
