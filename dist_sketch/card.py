"""The model card of an exported generator: data and their licence, training, scores with n, use and limits."""

from pathlib import Path
from typing import Any

from dist_sketch import page, report
from dist_sketch.errors import UserError
from dist_sketch.fileio import read_json
from dist_sketch.hub import CARD_MARKER, SketchGenerator

COLUMNS = ("blank", "input", "reference")  # baselines beside raw and denoised


def card(model: SketchGenerator, run: Path, scored: Path | None = None) -> str:
    """The card as Markdown, with the head that the Hugging Face Hub reads.

    Args:
        run: the run (or export) that the generator is of.
        scored: output folder of `infer`, drawn by the same weights.

    Raises:
        UserError: `scored` is no such folder.
    """
    scores = _scores(model, run, scored) if scored is not None else None
    columns = (
        [scores["raw"], scores["denoised"], *(scores["baselines"].get(c) or {} for c in COLUMNS)] if scores else []
    )
    d = model.denoise
    noise = ["gray"] * d.gray + [f"filter {d.filter} of strength {d.strength:g}"] * (d.filter != "none")
    noise += ["shadows at the edges"] * d.shadows
    return page.render(
        "card.md.j2",
        marker=CARD_MARKER,
        title=run.resolve().name,
        model=model,
        facts=dict.fromkeys(("pairs", "data", "license", "steps", "device", "code")) | model.saved["facts"],
        parameters=sum(p.numel() for p in model.parameters()),
        changed=[
            row for row in report.changed(model.saved["config"]) if not row[0].startswith(("track.", "data.shards"))
        ],
        scores=scores,
        split={"val": "validation"}.get(read_json(scored / "infer.json")["split"], "") if scored else "",
        rows=[(m, [c.get(m.key) for c in columns]) for m in page.METRICS],
        noise=", ".join(noise) or "none",
    )


def _scores(model: SketchGenerator, run: Path, scored: Path) -> dict[str, Any]:
    if not all((scored / name).is_file() for name in ("infer.json", "metrics.json")):
        raise UserError(f"--scores {scored}: is not an output folder of `dist-sketch infer` with scores (metrics.json)")
    about = read_json(scored / "infer.json")
    if (about.get("run"), about.get("step")) != (str(run.resolve()), model.step):
        raise UserError(
            f"--scores {scored}: was drawn by {about.get('run')}, step {about.get('step')}, not by {run.resolve()}, "
            f"step {model.step}; draw it: dist-sketch infer --run {run} --step {model.step} --input DATA --out {scored}"
        )
    found: dict[str, Any] = read_json(scored / "metrics.json")
    return found
