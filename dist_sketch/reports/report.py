"""One self-contained HTML page for an output folder of `infer`: scores, portraits, the run's losses and settings."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from dist_sketch.core.config import Config, items
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json, write_atomic
from dist_sketch.metrics.definitions import METRICS, Metric
from dist_sketch.reports import error_map, page
from dist_sketch.reports.curves import (
    COLOURS,
    STYLE,
    Locks,
    bands,
    count,
    lock_intervals,
    points,
    scale,
    smooth,
    svg,
    thin,
)
from dist_sketch.reports.page import Table, conjoin, data_uri, figure, flat
from dist_sketch.tracking.tracker import read_metrics

ROW_PX = 512  # largest side of a portrait on the page


THUMB_PX = 96  # twice the shown size, for dense screens


TABLE_LIMIT, TABLE_END = 500, 200  # more images than the limit: the table keeps so many from both ends


CAPTIONS = {"line": "line", "raw": "raw", "sketch": "denoised", "real": "real"}  # folder of OUT -> words


BASELINES = {"blank": "the blank page", "input": "the input itself"}


def build(out: Path) -> Path:
    """Writes OUT/report.html and returns its path.

    Raises:
        UserError: `out` is no output folder of infer, or one of its JSON files is damaged.
    """
    infer = read_json(out / "infer.json") if (out / "infer.json").is_file() else {}
    if "names" not in infer:
        raise UserError(f"{out}: no finished inference is there (infer.json); run `dist-sketch infer ... --out {out}`")
    metrics = read_json(out / "metrics.json") if (out / "metrics.json").is_file() else None
    run = Path(infer["run"])
    saved = read_json(run / "config.json") if (run / "config.json").is_file() else {}
    settings = saved.get("config") or infer.get("config") or {}
    names, scored = infer["names"], {image["name"]: image for image in metrics["images"]} if metrics else {}
    folders = [f for f in CAPTIONS if f != "real" or (out / "real").is_dir()]
    side = min(ROW_PX, int(infer.get("size") or ROW_PX))

    def portrait(name: str, px: int, small: bool) -> Table:
        images = [(CAPTIONS[f], data_uri(out / f, name, px, small)) for f in folders]
        return {"name": name, "images": images, "scores": scored.get(name)}

    groups = [(title, [portrait(n, side, False) for n in group]) for title, group in choose(names, scored)]
    html = page.render(
        "report.html.j2",
        out=out,
        run=run,
        infer=infer,
        metrics=metrics,
        facts=saved.get("facts"),
        settings=settings,
        changed=changed(settings),
        rows=score_rows(metrics) if metrics else [],
        verdicts=[*verdicts(metrics), *flattered(infer)] if metrics else [],
        captions=[CAPTIONS[f] for f in folders],
        groups=groups,
        listed=[portrait(n, THUMB_PX, True) for n in shortlist(names, scored)],
        differences=differences(out) if "real" in folders else None,
        table_end=TABLE_END,
        calibration=calibrated(run, infer.get("denoise")),
        history=history(run),
    )
    write_atomic(out / "report.html", html)
    return out / "report.html"


def differences(out: Path) -> Table | None:
    """Where the denoised drawings differ from the real sketches; None if pictures of them are gone."""
    try:
        found = error_map.error_map(out, "denoised")
    except UserError:
        return None
    maps = []
    for words, plane, digits in (
        ("absolute difference of tone (0 to 1)", found.l1, 2),
        ("1 − SSIM", found.dissimilarity, 1),
    ):
        top = float(np.quantile(plane, error_map.QUANTILE))
        maps.append(
            (f"{words}: black 0, white {top:.{digits}f} or more", page.data_uri_of(error_map.colour(plane, top)))
        )
    pictures = [
        ("the mean of the real sketches, to find one's way", page.data_uri_of(error_map.gray(found.real))),
        *maps,
    ]
    return {"count": found.n, "pictures": pictures, "ink": found.ink, "ink_error": found.ink_error}


def changed(settings: Table) -> list[tuple[str, Any, Any]]:
    """(key, value, default) of each setting of a run's nested config that is not at its default."""
    defaults = dict(items(Config()))
    return [(k, v, defaults.get(k)) for k, v in flat(settings) if k not in defaults or v != defaults[k]]


def score_rows(metrics: Table) -> list[Table]:
    """One row a metric; five cells each: raw, denoised, blank, input, reference; the better of the first two marked."""
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


def verdicts(metrics: Table) -> list[tuple[str, str]]:
    """(mood, sentence): where the output does not beat the blank page or the input; what the noise removal did."""
    found = []
    for variant in ("denoised", "raw"):
        mine, lost, known = metrics[variant], [], 0
        for key, words in BASELINES.items():
            base = metrics["baselines"].get(key) or {}
            better, worse = _compare(mine, base)
            known += len(better) + len(worse)
            if worse:
                each = [f"{m.label} ({figure(mine[m.key], m.digits)} against {figure(base[m.key], m.digits)})"
                        for m in worse]  # fmt: skip
                lost.append(f"{words} in {conjoin(each)}")
        if lost:
            found.append(("bad", f"The {variant} output does not beat {', nor '.join(lost)}."))
        elif known:
            found.append(("good", f"The {variant} output beats the blank page and the input in every figure."))
    gains, losses = (_compare(metrics[a], metrics[b])[0] for a, b in (("denoised", "raw"), ("raw", "denoised")))
    effects = [(verb, [m.label for m in ms]) for verb, ms in (("improves", gains), ("worsens", losses)) if ms]
    words = ", but ".join(f"{verb} {conjoin(labels)}" for verb, labels in effects)
    return [*found, ("note", f"Noise removal {words or 'changes no figure'}.")]


def flattered(infer: Table) -> list[tuple[str, str]]:
    """(mood, sentence) where the scores are of the very pairs by which the weights were chosen."""
    return [("note", f"The generator {page.FLATTERED}.")] if infer.get("chosen_on_these") else []


def _compare(mine: Table, other: Table) -> tuple[list[Metric], list[Metric]]:
    """Metrics in which `mine` is better, and those in which it is not; those without a figure are in neither."""
    known = [m for m in METRICS if mine.get(m.key) is not None and other.get(m.key) is not None]
    better = [m for m in known if (mine[m.key] - other[m.key]) * m.sign > 0]
    return better, [m for m in known if m not in better]


def calibrated(run: Path, used: Table | None) -> str | None:
    """What the noise removal was chosen on, and which part of it was switched off for harm.

    Args:
        used: what the drawings were made with.

    Returns:
        A sentence or two; None if it is not known, or not what the run has chosen now.
    """
    saved = read_json(run / "denoise.json") if (run / "denoise.json").is_file() else {}
    rows = saved.get("candidates") or []
    if not rows or saved.get("denoise") != used:
        return None
    plain, chosen = rows[0], next(r for r in rows if r["chosen"])
    harm = [r for r in rows if not r["allowed"]]
    far = [r for r in harm if r.get("distance") is not None]
    words = f"Chosen on {saved['pairs']} training pairs" if "pairs" in saved else "Chosen on training pairs"
    why = [f"{len(harm) - len(far)} because they cost SSIM"] if len(harm) > len(far) else []
    why += [f"{_candidate(r)} because it raises KID ({plain['distance']:.3f} to {r['distance']:.3f})" for r in far]
    words += f" out of {len(rows)} settings{'; ruled out: ' if why else ''}{'; '.join(why)}."
    if chosen is plain:
        return f"{words} None was left that helps: filter and shadows are switched off."
    off = [
        w
        for w, gone in (("a filter", chosen["filter"] == "none"), ("the removal of shadows", not chosen["shadows"]))
        if gone
    ]
    return f"{words} {conjoin(off).capitalize()} would not have helped: switched off." if off else words


def _candidate(row: Table) -> str:
    filter_ = "" if row["filter"] == "none" else f"{row['filter']} of strength {row['strength']:g}"
    return " with ".join(w for w in (filter_, "removal of shadows" if row["shadows"] else "") if w)


def ranked(names: list[str], scored: Table) -> list[str]:
    """The names that have an SSIM of the denoised, from worst to best."""
    ssim = {n: scored[n]["denoised"].get("ssim") for n in names if n in scored}
    return sorted((n for n in ssim if ssim[n] is not None), key=lambda n: ssim[n])


def choose(names: list[str], scored: Table) -> list[tuple[str, list[str]]]:
    """(title, names) of the worst, median and best portraits, three each or fewer, none twice."""
    order = ranked(names, scored)
    if not order:  # evenly spread over the input
        return [("A sample", [names[i * len(names) // 9] for i in range(9)] if len(names) > 9 else names)]
    if len(order) < 3:
        return [("All", order)]
    k = min(3, len(order) // 3)
    middle = (len(order) - k) // 2
    return [("Worst", order[:k]), ("Median", order[middle : middle + k]), ("Best", order[: -k - 1 : -1])]


def shortlist(names: list[str], scored: Table) -> list[str]:
    """The names in the table of all images: all of them, or both ends of their ranking so that the page stays small."""
    if len(names) <= TABLE_LIMIT:
        return names
    order = ranked(names, scored) or names
    return order if len(order) <= 2 * TABLE_END else order[:TABLE_END] + order[-TABLE_END:]


# (title, kind of record, x, panels: (title, ((record's key, colour, line style), ...)))
BELIEF = ("belief in real sketches (solid) and in drawn ones (dotted)", (("d/real", "d", "-"), ("d/fake", "d", ":")))


LOSS_D, LOSS_G = ("loss of D", (("loss/d", "d", "-"),)), ("loss of G", (("loss/g", "g", "-"),))


L1, SSIM = ("its L1 term", (("loss/g_l1", "g", "-"),)), ("SSIM on the validation split", (("val/ssim", "v", "o-"),))


PLOTS = (
    ("Discriminator", "train", "step", (LOSS_D, BELIEF)),
    ("Generator", "train", "step", (LOSS_G, L1)),
    ("Validation", "val", "epoch", (SSIM,)),
)


def history(run: Path) -> Table:
    """The run's curves as inline SVG (each wide, and narrow for phones), its locks, its last record."""
    records = read_metrics(run)
    train, locks, curves = [r for r in records if r["kind"] == "train"], lock_intervals(records), []
    for title, kind, x, panels in PLOTS:
        chosen = [r for r in records if r["kind"] == kind]
        if len(points(chosen, x, panels[0][1][0][0])[0]) >= 2:
            svgs = [draw(title, chosen, x, panels, locks if x == "step" else {}, width) for width in (10.0, 5.0)]
            curves.append({"title": title, "locks": x == "step", "wide": svgs[0], "narrow": svgs[1]})
    speeds = points(train, "step", "speed/images_per_s")[1]
    speed = float(np.median(speeds)) if len(speeds) else None
    return {"curves": curves, "locks": locks, "train": train, "speed": speed}


def draw(title: str, records: list[Table], x: str, panels: Any, locks: Locks, width: float) -> Markup:
    """Curves as an SVG `width` inches wide: faint as logged, strong smoothed, locks as shaded bands."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"{title}{width}"}):
        height = 0.8 + 1.9 * len(panels)
        canvas = Figure(figsize=(width, height), dpi=72)
        canvas.subplots_adjust(0.5 / width, 0.5 / height, 1 - 0.25 / width, 1 - 0.3 / height, hspace=0.25)
        axes = canvas.subplots(len(panels), sharex=True, squeeze=False)
        for ax, (name, series) in zip(axes.flat, panels, strict=True):
            for key, colour, line in series:
                at, value = points(records, x, key)
                if line != "o-" and len(value):
                    ax.plot(*thin(at, value), color=COLOURS[colour], alpha=0.25, linewidth=0.7)
                    value = smooth(value)
                ax.plot(*thin(at, value), line, color=COLOURS[colour], linewidth=1.8, markersize=4)
            scale(ax, name)
            for net, intervals in locks.items():
                bars, band = bands(intervals), ax.get_xaxis_transform()
                ax.broken_barh(bars, (0, 1), transform=band, color=COLOURS[net], alpha=0.16, linewidth=0)
        count(ax, x, width)
        return svg(canvas, title)
