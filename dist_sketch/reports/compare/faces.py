"""The same faces drawn by every output of a comparison; the sample pictures of runs without outputs."""

from typing import Any

from dist_sketch.reports.compare.entries import Entry
from dist_sketch.reports.compare.scores import Group, comparable
from dist_sketch.reports.page import data_uri, embed

FACES = 6  # shown side by side


SAMPLES = 12  # pictures of training runs that nothing was drawn with


def faces(parts: list[Group]) -> dict[str, Any]:
    """The same faces drawn by the first seed of each group: names evenly spread, chosen without looking at scores."""
    drawn = [(g.label, g.entries[0]) for g in parts if g.entries[0].kind == "output"]
    if not drawn:
        return {"rows": [], "names": [], "why": ""}
    common = [n for n in drawn[0][1].names if all(n in e.names for _, e in drawn)]
    mixed = any("other pictures" in reason for _, e in drawn for reason in comparable(e, drawn[0][1]))
    if mixed or not common:
        return {"rows": [], "names": [], "why": "These outputs are of different faces, so none is shown side by side."}
    chosen = [common[i * len(common) // FACES] for i in range(FACES)] if len(common) > FACES else common
    px = 256 if len(drawn) <= 4 else 160
    scored = {label: {i["name"]: i for i in (e.scores or {"images": []})["images"]} for label, e in drawn}
    rows = []
    for name in chosen:
        cells = []
        for label, e in drawn:
            pair = [(words, data_uri(e.path / folder, name, px, False), scored[label].get(name, {}).get(words, {}))
                    for words, folder in (("raw", "raw"), ("denoised", "sketch"))]  # fmt: skip
            cells.append((label, pair))
        line, real = (_first(drawn, folder, name, px) for folder in ("line", "real"))
        rows.append({"name": name, "line": line, "real": real, "cells": cells})
    return {"rows": rows, "names": [label for label, _ in drawn], "why": ""}


def _first(drawn: list[tuple[str, Entry]], folder: str, name: str, px: int) -> str:
    """A picture that is the same in all outputs, of the first that still has it."""
    return next((uri for _, e in drawn if (uri := data_uri(e.path / folder, name, px, False))), "")


def samples(parts: list[Group]) -> list[tuple[str, str]]:
    """(label, picture) of the last samples of the first seed of each group of training runs."""
    shown = []
    for group in parts:
        first = group.entries[0]
        pictures = sorted(first.run.glob("samples/step-*.png")) if first.kind == "run" else []
        if pictures:
            shown.append((f"{group.label}, step {int(pictures[-1].stem[5:]):,}", embed(pictures[-1], 1024, False)))
    return shown[:SAMPLES]
