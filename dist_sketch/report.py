"""One self-contained HTML page for an output folder of `infer`: scores, portraits, the run's losses and settings."""

import base64
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image
from scipy.ndimage import gaussian_filter1d

from dist_sketch.config import Config, items
from dist_sketch.errors import UserError
from dist_sketch.fileio import read_json, write_atomic
from dist_sketch.track import read_metrics

Table = dict[str, Any]

ROW_PX = 512  # largest side of a portrait on the page
THUMB_PX = 96  # twice the shown size, for dense screens
TABLE_LIMIT, TABLE_END = 500, 200  # more images than the limit: the table keeps so many from both ends
CURVE_POINTS = 1400  # in a drawn curve; more cannot be told apart on a screen
CAPTIONS = {"line": "line", "raw": "raw", "sketch": "denoised", "real": "real"}  # folder of OUT -> words
BASELINES = {"blank": "the blank page", "input": "the input itself"}


class Metric(NamedTuple):
    """How one figure of metrics.json is printed."""

    key: str
    label: str
    sign: int  # +1: higher is better
    digits: int
    meaning: str


METRICS = (
    Metric("ssim", "SSIM", 1, 3, "Structural similarity to the real sketch, mean over the images; 1 is identical"),
    Metric("psnr", "PSNR", 1, 2, "Peak signal-to-noise ratio against the real sketch in dB, mean over the images"),
    Metric("l1", "L1", -1, 4, "Mean absolute difference from the real sketch"),
    Metric("fid_64", "FID-64", -1, 2, "Fréchet distance of 64 Inception features (first max pooling)"),
    Metric("fid_192", "FID-192", -1, 2, "Fréchet distance of 192 Inception features (second max pooling)"),
    Metric("fid_768", "FID-768", -1, 3, "Fréchet distance of 768 Inception features (before the auxiliary head)"),
    Metric("fid_2048", "FID-2048", -1, 1, "Fréchet distance of 2048 Inception features (last pooling): the usual FID"),
    Metric("kid", "KID", -1, 4, "Kernel Inception distance, unbiased, so it may fall below 0 by chance"),
)


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
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"figure": figure, "flat": flat}
    page = environment.get_template("report.html.j2").render(
        out=out,
        run=run,
        infer=infer,
        metrics=metrics,
        facts=saved.get("facts"),
        settings=settings,
        changed=changed(settings),
        rows=score_rows(metrics) if metrics else [],
        verdicts=verdicts(metrics) if metrics else [],
        captions=[CAPTIONS[f] for f in folders],
        groups=groups,
        listed=[portrait(n, THUMB_PX, True) for n in shortlist(names, scored)],
        table_end=TABLE_END,
        history=history(run),
    )
    write_atomic(out / "report.html", page)
    return out / "report.html"


def figure(value: float | None, digits: int) -> str:
    """A figure as text; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def flat(tree: Table, prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of a nested dict as (dotted key, value)."""
    leaves = []
    for key, value in tree.items():
        leaves += flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]
    return leaves


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
                lost.append(f"{words} in {_and(each)}")
        if lost:
            found.append(("bad", f"The {variant} output does not beat {', nor '.join(lost)}."))
        elif known:
            found.append(("good", f"The {variant} output beats the blank page and the input in every figure."))
    gains, losses = (_compare(metrics[a], metrics[b])[0] for a, b in (("denoised", "raw"), ("raw", "denoised")))
    effects = [f"{verb} {_and([m.label for m in ms])}" for verb, ms in (("improves", gains), ("worsens", losses)) if ms]
    return [*found, ("note", f"Noise removal {', but '.join(effects) or 'changes no figure'}.")]


def _compare(mine: Table, other: Table) -> tuple[list[Metric], list[Metric]]:
    """Metrics in which `mine` is better, and those in which it is not; those without a figure are in neither."""
    known = [m for m in METRICS if mine.get(m.key) is not None and other.get(m.key) is not None]
    better = [m for m in known if (mine[m.key] - other[m.key]) * m.sign > 0]
    return better, [m for m in known if m not in better]


def _and(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


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


def data_uri(folder: Path, name: str, px: int, small: bool) -> str:
    """FOLDER/NAME.{png,jpg} as a WebP data URI of at most `px` pixels a side; empty if it cannot be read.

    `small` compresses strongly, for thumbnails; else nothing is lost up to 256 px.
    """
    buffer = io.BytesIO()
    for path in (folder / f"{name}{suffix}" for suffix in (".png", ".jpg", ".jpeg")):
        try:
            with Image.open(path) as image:
                picture = image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
        picture.thumbnail((px, px), Image.Resampling.LANCZOS)
        picture.save(buffer, "WEBP", lossless=not small and px <= 256, quality=60 if small else 92)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return ""


class Interval(NamedTuple):
    """Steps start <= step < end in which a network was locked."""

    start: int
    end: int
    reason: str


Locks = dict[str, list[Interval]]  # of "d" and "g"


def lock_intervals(records: list[Table]) -> Locks:
    """When D ("d") and G ("g") were locked: by the lock records, or by the train records if there are none."""
    changes = [(r["step"], {"d": not r["train_d"], "g": not r["train_g"]}, r.get("reason"))
               for r in records if r["kind"] == "lock"]  # fmt: skip
    if not changes:
        changes = [(r["step"], {"d": bool(r.get("lock/d")), "g": bool(r.get("lock/g"))}, r.get("lock/reason"))
                   for r in records if r["kind"] == "train"]  # fmt: skip
    changes.append((max((r["step"] + 1 for r in records), default=0), {"d": False, "g": False}, ""))
    found: Locks = {"d": [], "g": []}
    for net, intervals in found.items():
        start, why = None, ""
        for step, locked, reason in changes:
            if locked[net] and start is None:
                start, why = step, re.sub(r"^[DG] locked: ", "", str(reason or ""))
            elif not locked[net] and start is not None:
                intervals.append(Interval(start, step, why))
                start = None
    return found


def bands(intervals: list[Interval]) -> list[tuple[int, int]]:
    """(start, width) of what is shaded; gaps that are too narrow to be seen are closed."""
    bars: list[tuple[int, int]] = []
    narrow = (intervals[-1].end - intervals[0].start) // CURVE_POINTS if intervals else 0
    for start, end, _ in intervals:
        if bars and start - sum(bars[-1]) <= narrow:
            start = bars.pop()[0]
        bars.append((start, end - start))
    return bars


# (title, kind of record, x, panels: (title, ((record's key, colour, line style), ...)))
BELIEF = ("belief in real sketches (solid) and in drawn ones (dotted)", (("d/real", "d", "-"), ("d/fake", "d", ":")))
LOSS_D, LOSS_G = ("loss of D", (("loss/d", "d", "-"),)), ("loss of G", (("loss/g", "g", "-"),))
L1, SSIM = ("its L1 term", (("loss/g_l1", "g", "-"),)), ("SSIM on the validation split", (("val/ssim", "v", "o-"),))
PLOTS = (
    ("Discriminator", "train", "step", (LOSS_D, BELIEF)),
    ("Generator", "train", "step", (LOSS_G, L1)),
    ("Validation", "val", "epoch", (SSIM,)),
)
# Colours that matplotlib writes, and what the page's style sheet turns them into, by day and by night.
COLOURS = {"d": "#100001", "g": "#100002", "v": "#100003", "ink": "#100004", "rule": "#100005"}
STYLE: Any = {"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left",
         "text.color": COLOURS["ink"], "axes.labelcolor": COLOURS["ink"], "axes.edgecolor": COLOURS["rule"],
         "xtick.color": COLOURS["ink"], "ytick.color": COLOURS["ink"], "grid.color": COLOURS["rule"],
         "axes.spines.top": False, "axes.spines.right": False, "axes.xmargin": 0.01, "axes.grid": True,
         "axes.grid.axis": "y", "grid.linewidth": 0.5,
         "xtick.major.size": 0, "ytick.major.size": 0}  # fmt: skip


def history(run: Path) -> Table:
    """The run's curves as inline SVG (each wide, and narrow for phones), its locks, its last record."""
    records = read_metrics(run)
    train, locks, curves = [r for r in records if r["kind"] == "train"], lock_intervals(records), []
    for title, kind, x, panels in PLOTS:
        chosen = [r for r in records if r["kind"] == kind]
        if len(_points(chosen, x, panels[0][1][0][0])[0]) >= 2:
            svgs = [draw(title, chosen, x, panels, locks if x == "step" else {}, width) for width in (10.0, 5.0)]
            curves.append({"title": title, "locks": x == "step", "wide": svgs[0], "narrow": svgs[1]})
    speeds = _points(train, "step", "speed/images_per_s")[1]
    speed = float(np.median(speeds)) if len(speeds) else None
    return {"curves": curves, "locks": locks, "train": train, "speed": speed}


def _points(records: list[Table], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """The finite pairs of two columns of the records."""
    pairs = np.array([(r.get(x), r.get(y)) for r in records], dtype=float).reshape(-1, 2)  # None becomes NaN
    at, value = pairs[np.isfinite(pairs).all(1)].T
    return at + (x == "epoch"), value  # epochs are logged from 0, and people count from 1


def draw(title: str, records: list[Table], x: str, panels: Any, locks: Locks, width: float) -> Markup:
    """Curves as an SVG `width` inches wide: faint as logged, strong smoothed, locks as shaded bands."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"{title}{width}"}):
        height = 0.8 + 1.9 * len(panels)
        canvas = Figure(figsize=(width, height), dpi=72)
        canvas.subplots_adjust(0.5 / width, 0.5 / height, 1 - 0.25 / width, 1 - 0.3 / height, hspace=0.25)
        axes = canvas.subplots(len(panels), sharex=True, squeeze=False)
        for ax, (name, series) in zip(axes.flat, panels, strict=True):
            for key, colour, line in series:
                at, value = _points(records, x, key)
                if line != "o-" and len(value):
                    ax.plot(*_thin(at, value), color=COLOURS[colour], alpha=0.25, linewidth=0.7)
                    value = gaussian_filter1d(value, max(1.0, len(value) / 120), mode="reflect")
                ax.plot(*_thin(at, value), line, color=COLOURS[colour], linewidth=1.8, markersize=4)
                low, high = ax.dataLim.intervaly
                if "loss" in name and 0 < 8 * low < high:
                    ax.set_yscale("log")
                    ticks = LogLocator(subs=(1, 2, 5))
                    ax.yaxis.set(major_locator=ticks, minor_locator=NullLocator(), major_formatter="{x:g}")
            for net, intervals in locks.items():
                bars, band = bands(intervals), ax.get_xaxis_transform()
                ax.broken_barh(bars, (0, 1), transform=band, color=COLOURS[net], alpha=0.16, linewidth=0)
            ax.set_title(name)
        ax.set_xlabel(x)
        ax.xaxis.set(major_locator=MaxNLocator(8 if width > 6 else 5, integer=True), major_formatter="{x:,.0f}")
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", transparent=True)
    svg = re.sub(r"^.*?(?=<svg)|<(metadata|style).*?</\1>", "", buffer.getvalue(), flags=re.S)
    svg = re.sub(r'(?<=<g) id="[^"]*"', "", svg)  # the same in each plot, and nothing refers to them
    svg = re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)  # 1/100 point is enough
    svg = re.sub(r'<svg (.*?)width="\S+" height="\S+"', rf'<svg \1role="img" aria-label="{title}"', svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return Markup(svg)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most CURVE_POINTS points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(y) <= CURVE_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(y)), CURVE_POINTS // 2)
    keep = np.unique([i for part in parts for i in (part[y[part].argmin()], part[y[part].argmax()])])
    return x[keep], y[keep]
