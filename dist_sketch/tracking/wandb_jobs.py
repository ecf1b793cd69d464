"""What W&B is told at the end of each job: pairs side by side with their scores, and what was made of what."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from dist_sketch.core.config import TrackConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json
from dist_sketch.data import pixels
from dist_sketch.data.image_files import read_image
from dist_sketch.data.manifest import manifest_hash
from dist_sketch.metrics import similarity
from dist_sketch.model import pretrained
from dist_sketch.tracking import wandb_run
from dist_sketch.tracking.provenance import revision, versions
from dist_sketch.tracking.wandb_run import Artifact

COLUMNS = ("name", "line", "raw", "denoised", "real", "raw/ssim", "denoised/ssim", "raw/l1", "denoised/l1")


SCORES = ("ssim", "l1", "psnr", "fid_64", "fid_192", "fid_768", "fid_2048", "kid")


def generator(run: Path, weights: Path) -> Artifact:
    """The generator of a run, or of an export, by its id and the hash of the file that holds what draws.

    Args:
        weights: the checkpoint's folder, or the export's.
    """
    run_id = read_json(run / pretrained.SETTINGS)["facts"].get("run_id", "unknown")
    return wandb_run.model(run_id, pretrained.weights_sha256(weights))


def drawn(out: Path, track: TrackConfig, *, seconds: float | None = None, again: bool = False) -> None:
    """Logs an output folder of `infer`: scores, first pairs, and the generator that drew it. Never fails.

    Args:
        seconds: that the drawing took.
        again: it was logged before: this goes to the same run.
    """
    if wandb_run.is_off(track):
        return
    try:
        about = read_json(out / "infer.json")
        scores = out / "metrics.json"
        result = read_json(scores) if scores.is_file() else None
        names = about.pop("names")
        settings = {**about, "images": len(names), "code": revision(), "versions": versions()}
        if result is not None:
            settings["scored"] = result["settings"]
        with wandb_run.job(out, track, kind="infer", settings=settings, uses=_used(about), again=again) as log:
            if seconds is not None:
                log.summary({"speed/images_per_s": len(names) / seconds})
            if result is None or not log.is_on:
                return
            shown = {f"{kind}/{key}": result[kind][key] for kind in ("raw", "denoised") for key in SCORES}
            log.summary({k: v for k, v in shown.items() if v is not None})
            log.table("pairs", COLUMNS, [pair_row(n, *_images(out, about, n)) for n in names[: wandb_run.MOST_ROWS]])
    except Exception as e:
        print(f"warning: W&B gets no log of {out} ({type(e).__name__}: {e})")


def _used(about: dict[str, Any]) -> list[Artifact]:
    """What drew an output, and the shards that it drew from; as far as they are still there."""
    found = []
    with suppress(OSError, UserError, KeyError):
        run = Path(about["run"])
        found.append(generator(run, pretrained.find_weights(run, about["step"])[0]))
    with suppress(OSError, UserError):
        source = Path(about["input"])
        found.append(wandb_run.dataset(source, manifest_hash(source)))
    return found


def _images(out: Path, about: dict[str, Any], name: str) -> list[Tensor]:
    suffix = {"line": "png", "raw": about["format"], "sketch": about["format"], "real": "png"}
    files = [out / folder / f"{name}.{end}" for folder, end in suffix.items()]
    images = [pixels.from_image(read_image(file), 3) for file in files]
    return [pixels.resize(i, about["size"], about["size"]) for i in images]


def packed(shards: Path, track: TrackConfig, manifest: dict[str, Any], seconds: float) -> None:
    """Logs a folder of new shards, the run's artifact. Never fails."""
    if wandb_run.is_off(track):
        return
    try:
        settings = {k: manifest[k] for k in ("size", "recipe", "license", "settings")}
        settings |= {"manifest_sha256": manifest_hash(shards), "code": revision(), "versions": versions()}
        with wandb_run.job(shards, track, kind="pack", settings=settings) as log:
            found = {"pack/left_out": len(manifest["skipped"]), "pack/seconds": seconds}
            for split, part in manifest["splits"].items():
                found[f"{split}/samples"] = part["count"]
                found[f"{split}/shards"] = len(part["shards"])
                found[f"{split}/mb"] = sum(s["bytes"] for s in part["shards"]) / 1e6
            log.summary(found)
            log.made(wandb_run.dataset(shards, settings["manifest_sha256"]))
    except Exception as e:
        print(f"warning: W&B gets no log of {shards} ({type(e).__name__}: {e})")


def pair_row(name: str, line: Tensor, raw: Tensor, clean: Tensor, real: Tensor) -> list[Any]:
    """A row of the table of pairs: pictures, and the scores of the raw and the denoised drawing."""
    images = [pixels.to_rgb(i) for i in (line, raw, clean, real)]
    scores = [score(drawn, images[3]) for score in (similarity.ssim, similarity.l1) for drawn in images[1:3]]
    return [name, *(i.permute(1, 2, 0).numpy() for i in images), *scores]
