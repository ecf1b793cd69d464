"""The model card of an exported generator: data and their licence, training, scores, intended use, limits."""

from pathlib import Path
from typing import Any

from dist_sketch.core.config import to_dict
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json
from dist_sketch.metrics.definitions import METRICS
from dist_sketch.model.pretrained import CARD_MARKER, SketchGenerator
from dist_sketch.reports.page import OPTIMISTIC, render
from dist_sketch.reports.report import changed

BASELINES = ("blank", "input", "reference")  # columns beside raw and denoised


def card(model: SketchGenerator, name: str, weights_sha256: str, scored: Path | None = None) -> str:
    """The card as Markdown, with the metadata block that the Hugging Face Hub reads.

    Args:
        name: of the run or export that the generator comes from.
        weights_sha256: of the file that its weights came from.
        scored: output folder of `infer`, drawn with the same weights and the generator's own settings.

    Raises:
        UserError: `scored` is not such a folder.
    """
    infer, scores = _scores(model, weights_sha256, scored) if scored is not None else ({}, None)
    columns = []
    if scores:
        columns = [scores["raw"], scores["denoised"], *(scores["baselines"].get(b) or {} for b in BASELINES)]
    d = model.denoise
    noise = ["gray"] * d.gray + [f"filter {d.filter} of strength {d.strength:g}"] * (d.filter != "none")
    noise += ["shadows at the edges, glare"] * d.shadows
    return render(
        "card.md.j2",
        marker=CARD_MARKER,
        title=name,
        model=model,
        facts=dict.fromkeys(("pairs", "data", "license", "steps", "device", "code")) | model.saved["facts"],
        parameters=sum(p.numel() for p in model.parameters()),
        changed=[row for row in changed(model.saved["config"]) if not row[0].startswith(("track.", "data.shards"))],
        scores=scores,
        split={"val": "validation", "train": "TRAINING"}.get(infer.get("split", ""), infer.get("split", "")),
        optimistic=OPTIMISTIC if infer.get("chosen_on_these") else "",
        rows=[(m, [c.get(m.key) for c in columns]) for m in METRICS],
        noise=", ".join(noise) or "none",
    )


def _scores(model: SketchGenerator, weights_sha256: str, scored: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of infer.json and metrics.json."""
    if not all((scored / name).is_file() for name in ("infer.json", "metrics.json")):
        raise UserError(f"--scores {scored}: is not an output folder of `dist-sketch infer` with scores (metrics.json)")
    infer = read_json(scored / "infer.json")
    again = "draw again with `dist-sketch infer`"
    if infer.get("weights_sha256") != weights_sha256:
        raise UserError(f"--scores {scored}: was drawn with other weights ({infer.get('run')}); {again}")
    if infer.get("denoise") != to_dict(model.denoise) or infer.get("mode", {}).get("statistics") != "running":
        raise UserError(
            f"--scores {scored}: was drawn with --denoise... or --mode, which the export does not use; {again}"
        )
    return infer, read_json(scored / "metrics.json")
