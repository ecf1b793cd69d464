"""The model card of an exported generator: data and their licence, training, scores, intended use, limits."""

from pathlib import Path
from typing import Any

from dist_sketch.core.config import to_dict
from dist_sketch.core.errors import UserError
from dist_sketch.core.licenses import hub_name
from dist_sketch.core.saved import read_infer, read_scores
from dist_sketch.model.pretrained import CARD_MARKER, SketchGenerator
from dist_sketch.reports.page import changed, render

FACTS = ("pairs", "data", "license", "steps", "device", "code", "began_with")  # of which some may be unknown
SURROUNDINGS = ("track.", "data.shards", "init_from")  # settings that hold paths and names of the user's machine


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
    return render(
        "card.md.j2",
        marker=CARD_MARKER,
        title=name,
        model=model,
        facts=dict.fromkeys(FACTS) | model.saved["facts"],
        license=license_id(model),
        parameters=sum(p.numel() for p in model.parameters()),
        changed=[row for row in changed(model.saved["config"]) if not row[0].startswith(SURROUNDINGS)],
        infer=infer,
        scores=scores,
    )


def license_id(model: SketchGenerator) -> str:
    """The Hub's name for the licence of all data behind these weights; other: it has none; unknown: not stated."""
    facts = model.saved["facts"]
    stated = [facts.get("license"), *(source.get("license") for source in facts.get("began_with") or [])]
    names = set(map(hub_name, stated))
    return names.pop() if len(names) == 1 else "other"


def _scores(model: SketchGenerator, weights_sha256: str, scored: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of infer.json and metrics.json."""
    infer, scores = read_infer(scored), read_scores(scored)
    if not infer or scores is None:
        raise UserError(f"--scores {scored}: is not an output folder of `dist-sketch infer` with scores (metrics.json)")
    again = "draw again with `dist-sketch infer`"
    if infer.get("weights_sha256") != weights_sha256:
        raise UserError(f"--scores {scored}: was drawn with other weights ({infer.get('run')}); {again}")
    if infer.get("denoise") != to_dict(model.denoise) or infer.get("mode", {}).get("statistics") != "running":
        raise UserError(
            f"--scores {scored}: was drawn with --denoise... or --mode, which the export does not use; {again}"
        )
    return infer, scores
