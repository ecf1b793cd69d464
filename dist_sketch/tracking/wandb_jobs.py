"""The W&B logs of `pack` and `infer`, and the table of pairs that training logs, too."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from dist_sketch.core.config import TrackConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import sha256
from dist_sketch.core.places import place
from dist_sketch.core.saved import read_finished_infer, read_scores, read_settings
from dist_sketch.data import pixels
from dist_sketch.data.manifest import manifest_hash
from dist_sketch.metrics.definitions import METRICS, OPTIMISTIC
from dist_sketch.metrics.similarity import l1, ssim
from dist_sketch.model import pretrained
from dist_sketch.tracking.tracker import revision, versions
from dist_sketch.tracking.wandb_run import MOST_ROWS, Artifact, WandbRun, dataset, fragments, new_id

SAMPLE_COLUMNS = ("name", "line", "drawn", "real", "ssim")  # of the table of a training's samples
COLUMNS = ("name", "line", "raw", "denoised", "real", "raw/ssim", "denoised/ssim", "raw/l1", "denoised/l1")


def generator(run: Path, weights: Path) -> Artifact:
    """The generator whose `weights` are in this folder of a run's checkpoint or an export; named by the run's id."""
    run_id = (read_settings(run).get("facts") or {}).get("run_id", "unknown")
    return Artifact(kind="model", name=f"generator-{run_id}", sha256=sha256(pretrained.weights_file(weights)))


def drawn(out: Path, track: TrackConfig, *, seconds: float | None = None, again: bool = False) -> None:
    """Logs an output folder of `infer`: its scores, its first pairs, and the generator that drew it. Never fails.

    Args:
        seconds: time that the drawing took.
        again: continue the W&B run that logged this folder before.
    """
    try:
        from dist_sketch.inference.scoring import read_output  # takes seconds to import, which `pack` does not need

        about, result = read_finished_infer(out), read_scores(out)
        names = about.pop("names")
        settings = {**about, "images": len(names), "code": revision(), "versions": versions()}
        if result is not None:
            settings["scored"] = result["settings"]
        earlier = fragments(out) if again else []
        run_id = earlier[-1].run_id if earlier else new_id()
        with WandbRun(out, track, job="infer", run_id=run_id, settings=settings, uses=_used(about)) as log:
            if seconds is not None:
                log.summary({"speed/images_per_s": len(names) / seconds})
            if result is None or not log.is_on:
                return
            shown = {f"{kind}/{m.key}": result[kind].get(m.key) for kind in ("raw", "denoised") for m in METRICS}
            log.summary({k: v for k, v in shown.items() if v is not None})
            if about.get("chosen_on_these"):
                log.summary({"note": OPTIMISTIC})
            log.table("pairs", COLUMNS, [pair_row(n, **read_output(out, about, n)) for n in names[:MOST_ROWS]])
    except Exception as e:
        print(f"warning: W&B gets no log of {out} ({type(e).__name__}: {e})")


def _used(about: dict[str, Any]) -> list[Artifact]:
    """The generator and the shards that an output was made from, if they still exist."""
    found = []
    with suppress(OSError, UserError, KeyError):
        run = Path(about["run"])
        found.append(generator(run, pretrained.find_weights(run, about["step"])[0]))
    with suppress(OSError, UserError):
        source = place(about["input"])
        found.append(dataset(source, manifest_hash(source)))
    return found


def pair_row(name: str, line: Tensor, raw: Tensor, denoised: Tensor, real: Tensor) -> list[Any]:
    """A row of the table of pairs (COLUMNS)."""
    images = [pixels.to_rgb(i) for i in (line, raw, denoised, real)]
    scores = [score(image, images[3]) for score in (ssim, l1) for image in images[1:3]]
    return [name, *(i.permute(1, 2, 0).numpy() for i in images), *scores]


def sample_row(name: str, line: Tensor, drawn: Tensor, real: Tensor) -> list[Any]:
    """A row of the table of samples (SAMPLE_COLUMNS)."""
    images = [pixels.to_rgb(i) for i in (line, drawn, real)]
    return [name, *(i.permute(1, 2, 0).numpy() for i in images), ssim(images[1], images[2])]


def packed(shards: Path, track: TrackConfig, manifest: dict[str, Any], seconds: float) -> None:
    """Logs a folder of new shards, and the shards as the artifact that this job made. Never fails."""
    try:
        settings = {k: manifest[k] for k in ("size", "recipe", "license", "settings")}
        settings |= {"manifest_sha256": manifest_hash(shards), "code": revision(), "versions": versions()}
        with WandbRun(shards, track, job="pack", run_id=new_id(), settings=settings) as log:
            found = {"pack/left_out": len(manifest["skipped"]), "pack/seconds": seconds}
            for split, part in manifest["splits"].items():
                found[f"{split}/samples"] = part["count"]
                found[f"{split}/shards"] = len(part["shards"])
                found[f"{split}/mb"] = sum(s["bytes"] for s in part["shards"]) / 1e6
            log.summary(found)
            log.made(dataset(shards, settings["manifest_sha256"]))
    except Exception as e:
        print(f"warning: W&B gets no log of {shards} ({type(e).__name__}: {e})")
