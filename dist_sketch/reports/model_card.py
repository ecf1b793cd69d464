"""The model card of an exported generator: data and their licence, training, scores with n, use and limits."""

from pathlib import Path
from typing import Any

from dist_sketch.core.config import to_dict
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json
from dist_sketch.metrics.definitions import METRICS
from dist_sketch.model.pretrained import CARD_MARKER, SketchGenerator
from dist_sketch.reports import page, report

COLUMNS = ("blank", "input", "reference")  # baselines beside raw and denoised


def card(model: SketchGenerator, name: str, weights_sha256: str, scored: Path | None = None) -> str:
    """The card as Markdown, with the head that the Hugging Face Hub reads.

    Args:
        name: of the run (or export) that the generator is of.
        weights_sha256: of the file that its weights came from.
        scored: output folder of `infer`, drawn by the same weights as the generator draws by itself.

    Raises:
        UserError: `scored` is no such folder.
    """
    about, scores = _scores(model, weights_sha256, scored) if scored is not None else ({}, None)
    columns = (
        [scores["raw"], scores["denoised"], *(scores["baselines"].get(c) or {} for c in COLUMNS)] if scores else []
    )
    d = model.denoise
    noise = ["gray"] * d.gray + [f"filter {d.filter} of strength {d.strength:g}"] * (d.filter != "none")
    noise += ["shadows at the edges, glare"] * d.shadows
    return page.render(
        "card.md.j2",
        marker=CARD_MARKER,
        title=name,
        model=model,
        facts=dict.fromkeys(("pairs", "data", "license", "steps", "device", "code")) | model.saved["facts"],
        parameters=sum(p.numel() for p in model.parameters()),
        changed=[
            row for row in report.changed(model.saved["config"]) if not row[0].startswith(("track.", "data.shards"))
        ],
        scores=scores,
        split={"val": "validation", "train": "TRAINING"}.get(about.get("split", ""), about.get("split", "")),
        flattered=page.FLATTERED if about.get("chosen_on_these") else "",
        rows=[(m, [c.get(m.key) for c in columns]) for m in METRICS],
        noise=", ".join(noise) or "none",
    )


def _scores(model: SketchGenerator, weights_sha256: str, scored: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """infer.json and metrics.json."""
    if not all((scored / name).is_file() for name in ("infer.json", "metrics.json")):
        raise UserError(f"--scores {scored}: is not an output folder of `dist-sketch infer` with scores (metrics.json)")
    about = read_json(scored / "infer.json")
    anew = "draw it anew with `dist-sketch infer`"
    if about.get("weights_sha256") != weights_sha256:
        raise UserError(f"--scores {scored}: was drawn by other weights ({about.get('run')}); {anew}")
    if about.get("denoise") != to_dict(model.denoise) or about.get("mode", {}).get("statistics") != "running":
        raise UserError(f"--scores {scored}: was drawn with --denoise... or --mode, not as the export draws; {anew}")
    return about, read_json(scored / "metrics.json")
