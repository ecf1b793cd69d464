"""One self-contained HTML page for an output folder of `infer`: scores, portraits, the run's losses and settings."""

from pathlib import Path
from typing import Any

import numpy as np

from dist_sketch.core.config import Config, items
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import write_atomic
from dist_sketch.metrics.definitions import METRICS, Metric
from dist_sketch.reports import error_map
from dist_sketch.reports.curves import SVG_COLOURS, Curve, Panel, lock_intervals, plot, points, style, svg
from dist_sketch.reports.page import OPTIMISTIC, conjoin, find_picture, flat, number, optional_json, render
from dist_sketch.tracking.tracker import read_metrics

PORTRAIT_PX = 512  # largest side of a portrait on the page
THUMB_PX = 96  # twice the shown size, for dense screens
TABLE_LIMIT, TABLE_END = 500, 200  # with more images than the limit, the table shows this number from both ends
CAPTIONS = {"line": "line", "raw": "raw", "sketch": "denoised", "real": "real"}  # folder of OUT -> caption
BASELINES = {"blank": "the blank page", "input": "the input itself"}

# (title, kind of record, x axis, panels: (title, curves: (key of the record, colour, line style)))
PLOTS = (
    ("Discriminator", "train", "step", (
        ("loss of D", (("loss/d", "d", "-"),)),
        ("belief in real sketches (solid) and in drawn ones (dotted)", (("d/real", "d", "-"), ("d/fake", "d", ":"))),
    )),
    ("Generator", "train", "step", (
        ("loss of G", (("loss/g", "g", "-"),)),
        ("its L1 term", (("loss/g_l1", "g", "-"),)),
    )),
    ("Validation", "val", "epoch", (("SSIM on the validation split", (("val/ssim", "v", "-"),)),)),
)  # fmt: skip


def build(out: Path) -> Path:
    """Writes OUT/report.html and returns its path.

    Raises:
        UserError: `out` is not an output folder of infer, or one of its JSON files is damaged.
    """
    infer = optional_json(out / "infer.json") or {}
    if "names" not in infer:
        raise UserError(
            f"{out}: has no infer.json of a finished inference; run `dist-sketch infer ... --out {out}` first"
        )
    metrics = optional_json(out / "metrics.json")
    run = Path(infer["run"])
    saved = optional_json(run / "config.json") or {}
    settings = saved.get("config") or infer.get("config") or {}
    names, scored = infer["names"], {image["name"]: image for image in metrics["images"]} if metrics else {}
    folders = [f for f in CAPTIONS if f != "real" or (out / "real").is_dir()]
    side = min(PORTRAIT_PX, int(infer.get("size") or PORTRAIT_PX))

    def portrait(name: str, px: int, small: bool) -> dict[str, Any]:
        images = [(CAPTIONS[f], find_picture(out / f, name, px, small)) for f in folders]
        return {"name": name, "images": images, "scores": scored.get(name)}

    html = render(
        "report.html.j2",
        out=out,
        run=run,
        infer=infer,
        metrics=metrics,
        facts=saved.get("facts"),
        settings=settings,
        changed=changed(settings),
        rows=score_rows(metrics) if metrics else [],
        verdicts=verdicts(metrics, bool(infer.get("chosen_on_these"))) if metrics else [],
        captions=[CAPTIONS[f] for f in folders],
        groups=[(title, [portrait(n, side, False) for n in group]) for title, group in choose(names, scored)],
        listed=[portrait(n, THUMB_PX, True) for n in shortlist(names, scored)],
        differences=differences(out) if "real" in folders else None,
        table_end=TABLE_END,
        calibration=calibration(run, infer.get("denoise")),
        history=history(run),
    )
    write_atomic(out / "report.html", html)
    return out / "report.html"


def differences(out: Path) -> dict[str, Any] | None:
    """Where the denoised drawings differ from the real sketches; None if a picture is missing or damaged."""
    try:
        found = error_map.error_map(out, "denoised")
    except UserError:
        return None
    pictures = [("mean of the real sketches, for orientation", error_map.gray(found.real))]
    for caption, plane, digits in (
        ("absolute difference of tone (0 to 1)", found.l1, 2),
        ("1 − SSIM", found.dissimilarity, 1),
    ):
        top = float(np.quantile(plane, error_map.TOP_QUANTILE))
        pictures.append((f"{caption}: black 0, white {top:.{digits}f} or more", error_map.coloured(plane, top)))
    return {"count": found.n, "pictures": pictures, "ink": found.ink, "ink_error": found.ink_error}


def changed(settings: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value, default) of each setting of a run that differs from the default."""
    defaults = dict(items(Config()))
    return [(k, v, defaults.get(k)) for k, v in flat(settings) if k not in defaults or v != defaults[k]]


def score_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each metric: why a value is missing, and five cells (value, whether to mark it).

    The cells are raw, denoised, blank, input and reference. The better of the first two is marked.
    """
    columns = [metrics["raw"], metrics["denoised"]]
    columns += [metrics["baselines"].get(k) or {} for k in (*BASELINES, "reference")]
    missing = metrics["settings"].get("missing") or {}
    rows = []
    for m in METRICS:
        values = [c.get(m.key) for c in columns]
        raw, denoised = values[:2]
        winner = None if raw is None or denoised is None or raw == denoised else int((denoised - raw) * m.sign > 0)
        why = missing.get(m.key.split("_")[0]) or missing.get("reference") or "not computed"
        rows.append({"metric": m, "why": why, "cells": [(v, i == winner) for i, v in enumerate(values)]})
    return rows


def verdicts(metrics: dict[str, Any], optimistic: bool = False) -> list[tuple[str, str]]:
    """(mood, sentence): whether the output beats the blank page and the input, and what the noise removal changed.

    Args:
        optimistic: the weights were selected on these same pairs.
    """
    found = []
    for variant in ("denoised", "raw"):
        mine, lost, won = metrics[variant], [], False
        for key, label in BASELINES.items():
            base = metrics["baselines"].get(key) or {}
            worse = [f"{m.label} ({number(mine[m.key], m.digits)} against {number(base[m.key], m.digits)})"
                     for m in _compare(mine, base, -1, 0)]  # fmt: skip
            lost += [f"{label} in {conjoin(worse)}"] if worse else []
            won |= bool(_compare(mine, base, 1))
        if lost:
            found.append(("bad", f"The {variant} output does not beat {', nor '.join(lost)}."))
        elif won:
            found.append(("good", f"The {variant} output beats the blank page and the input in every metric."))
    effects = []
    for verb, direction in (("improves", 1), ("worsens", -1)):
        labels = [m.label for m in _compare(metrics["denoised"], metrics["raw"], direction)]
        effects += [f"{verb} {conjoin(labels)}"] if labels else []
    found.append(("note", f"Noise removal {', but '.join(effects) or 'changes no metric'}."))
    return [*found, *([("note", OPTIMISTIC)] * optimistic)]


def _compare(mine: dict[str, Any], other: dict[str, Any], *directions: int) -> list[Metric]:
    """The metrics in which `mine` is better (1), equal (0) or worse (-1) than `other`; only those that both have."""
    known = [m for m in METRICS if mine.get(m.key) is not None and other.get(m.key) is not None]
    return [m for m in known if np.sign((mine[m.key] - other[m.key]) * m.sign) in directions]


def calibration(run: Path, used: dict[str, Any] | None) -> str | None:
    """How the run chose its noise removal, and which parts it switched off.

    Args:
        used: the settings that the drawings were made with.

    Returns:
        A sentence or two; None if the run has no calibration, or one with other settings than `used`.
    """
    saved = optional_json(run / "denoise.json") or {}
    rows = saved.get("candidates") or []
    if not rows or saved.get("denoise") != used:
        return None
    plain, chosen = rows[0], next(r for r in rows if r["chosen"])
    harm = [r for r in rows if not r["allowed"]]
    raise_kid = [r for r in harm if r.get("distance") is not None]
    why = [f"{len(harm) - len(raise_kid)} because they cost SSIM"] if len(harm) > len(raise_kid) else []
    for r in raise_kid:
        parts = [f"{r['filter']} of strength {r['strength']:g}"] * (r["filter"] != "none")
        parts += ["removal of shadows"] * r["shadows"]
        why.append(f"{' with '.join(parts)} because it raises KID ({plain['distance']:.3f} to {r['distance']:.3f})")
    pairs = f"{saved['pairs']} training pairs" if "pairs" in saved else "training pairs"
    text = f"Chosen on {pairs} out of {len(rows)} settings{'; ruled out: ' if why else ''}{'; '.join(why)}."
    if chosen is plain:
        return f"{text} No other setting helps, so filter and shadow removal are switched off."
    off = "A filter" if chosen["filter"] == "none" else "The removal of shadows" if not chosen["shadows"] else ""
    return f"{text} {off} would not have helped and is switched off." if off else text


def ranked(names: list[str], scored: dict[str, Any]) -> list[str]:
    """The names that have an SSIM of the denoised drawing, from worst to best."""
    ssim = {n: scored[n]["denoised"].get("ssim") for n in names if n in scored}
    return sorted((n for n in ssim if ssim[n] is not None), key=lambda n: ssim[n])


def choose(names: list[str], scored: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(title, names) of up to three worst, median and best portraits; a sample if there are no scores."""
    order = ranked(names, scored)
    if not order:  # evenly spread over the input
        return [("A sample", [names[i * len(names) // 9] for i in range(9)] if len(names) > 9 else names)]
    if len(order) < 3:
        return [("All", order)]
    k = min(3, len(order) // 3)
    middle = (len(order) - k) // 2
    return [("Worst", order[:k]), ("Median", order[middle : middle + k]), ("Best", order[: -k - 1 : -1])]


def shortlist(names: list[str], scored: dict[str, Any]) -> list[str]:
    """The names in the table of images: all of them, or both ends of the ranking if there are too many."""
    if len(names) <= TABLE_LIMIT:
        return names
    order = ranked(names, scored) or names
    return order if len(order) <= 2 * TABLE_END else order[:TABLE_END] + order[-TABLE_END:]


def history(run: Path) -> dict[str, Any]:
    """The run's curves as inline SVG (wide, and narrow for phones), its locks, its train records and its speed."""
    records = read_metrics(run)
    train, locks, figures = [r for r in records if r["kind"] == "train"], lock_intervals(records), []
    shaded = {SVG_COLOURS[net]: intervals for net, intervals in locks.items()}
    for title, kind, x, panels in PLOTS:
        chosen = [r for r in records if r["kind"] == kind]
        drawn = []
        for name, lines in panels:
            curves = [Curve(*points(chosen, x, k), SVG_COLOURS[c], line, noisy=x == "step") for k, c, line in lines]
            drawn.append(Panel(name, curves, shaded if x == "step" else {}))
        if len(drawn[0].curves[0].x) >= 2:
            with style(SVG_COLOURS):
                wide, narrow = (svg(plot(drawn, x, width), title) for width in (10.0, 5.0))
            figures.append({"title": title, "locks": x == "step", "wide": wide, "narrow": narrow})
    speeds = points(train, "step", "speed/images_per_s")[1]
    speed = float(np.median(speeds)) if len(speeds) else None
    return {"curves": figures, "locks": locks, "train": train, "speed": speed}
