"""Curves of several runs on one plot, and below it a strip for each lock."""

import warnings
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from dist_sketch.reports.curves import COLOURS, STYLE, count, points, scale, smooth, svg, thin

PANELS = (  # (title, kind of record, key)
    ("loss of G", "train", "loss/g"),
    ("loss of D", "train", "loss/d"),
    ("SSIM on the validation split", "val", "val/ssim"),
    ("FID-64 on the validation split", "val", "val/fid_64"),
)


HUES = sum(name.startswith("c") for name in COLOURS)


STRIPS = 36  # more are too many to be read: then one a group


PARTS, LEVELS = 200, 5  # of a strip along the run; shades of it


STRIP_IN, GAP_IN = 0.11, 0.2  # height of a strip, and of the words above it


class Curve(NamedTuple):
    """A run on the plot."""

    name: str
    group: int  # index: seeds of one group share a colour
    records: list[dict[str, Any]]
    batch_size: int


class Strip(NamedTuple):
    """When one network of a run was locked."""

    words: str
    group: int
    bars: list[tuple[float, float, float]]  # images seen: start, width; share of the steps there, above 0


def look(group: int) -> tuple[str, str]:
    """Colour and line style of a group."""
    return f"c{group % HUES}", ("-", "--", ":")[group // HUES % 3]


def strips(curves: list[Curve]) -> list[Strip]:
    """The locks of all runs, as far as they can be shown legibly."""
    found = [s for c in curves for s in _strips(c)]
    if len(found) > STRIPS:
        first = {c.group: c for c in reversed(curves)}
        found = [s for c in curves if first[c.group] is c for s in _strips(c)]
    return found


def _strips(curve: Curve) -> list[Strip]:
    train = [r for r in curve.records if r["kind"] == "train"]
    edges = np.array([0, *(r["step"] for r in train)], float)
    found = []
    for net in ("d", "g"):
        share = np.array([r.get(f"lock/{net}") or 0 for r in train], float)
        if not share.any():
            continue
        locked = np.concatenate([[0], np.cumsum(share * np.diff(edges))])  # steps, up to each edge
        at = np.linspace(0, edges[-1], min(PARTS, max(1, len(train) // 2)) + 1)
        level = np.ceil(np.diff(np.interp(at, edges, locked)) / np.diff(at) * LEVELS - 1e-6) / LEVELS
        bars: list[tuple[float, float, float]] = []
        for start, end, shade in zip(at[:-1] * curve.batch_size, at[1:] * curve.batch_size, level, strict=True):
            if bars and bars[-1][2] == shade:
                start = bars.pop()[0]
            bars.append((float(start), float(end - start), float(shade)))
        words = f"{curve.name}: {net.upper()} locked in {locked[-1] / edges[-1]:.0%} of the steps"
        found.append(Strip(words, curve.group, [b for b in bars if b[2] > 0]))
    return found


def draw(curves: list[Curve], width: float) -> Markup:
    """The plot as an SVG `width` inches wide; empty where there is nothing to draw."""
    series = [(title, [(c, *_series(c, kind, key)) for c in curves], kind) for title, kind, key in PANELS]
    panels = [(title, found, kind) for title, found, kind in series if any(len(at) > 1 for _, at, _ in found)]
    if not panels:
        return Markup()
    below = strips(curves)
    heights = [1.9] * len(panels) + [max(0.05, len(below) * (STRIP_IN + GAP_IN))]
    total = sum(heights) + 0.35 * len(panels) + 0.85
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": f"compare{width}"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's fonts draw the names, not ours
        canvas = Figure(figsize=(width, total), dpi=72)
        canvas.subplots_adjust(0.5 / width, 0.5 / total, 1 - 0.25 / width, 1 - 0.35 / total, hspace=0.28)
        axes = canvas.subplots(len(heights), sharex=True, gridspec_kw={"height_ratios": heights})
        for ax, (title, found, kind) in zip(axes, panels, strict=False):
            for curve, at, value in found:
                colour, line = look(curve.group)
                if kind == "train" and len(value):
                    if len(curves) <= 3:
                        ax.plot(*thin(at, value), color=COLOURS[colour], alpha=0.2, linewidth=0.7)
                    value = smooth(value, 60)
                mark = {"marker": "o", "markersize": 3} if kind == "val" else {}
                ax.plot(*thin(at, value), line, color=COLOURS[colour], linewidth=1.4, alpha=0.9, **mark)
            scale(ax, title)
        _draw_strips(axes[-1], below)
        count(axes[-1], "images seen", width)
        return svg(canvas, "Curves of all runs")


def _series(curve: Curve, kind: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    at, value = points([r for r in curve.records if r["kind"] == kind], "step", key)
    return at * curve.batch_size, value


def _draw_strips(ax: Any, below: list[Strip]) -> None:
    ax.set(yticks=[], ylim=(len(below) * (STRIP_IN + GAP_IN) or 1, 0))
    ax.spines["left"].set_visible(False)
    for i, strip in enumerate(below):
        colour, top = COLOURS[look(strip.group)[0]], i * (STRIP_IN + GAP_IN) + GAP_IN
        for shade in sorted({b[2] for b in strip.bars}):
            bars = [b[:2] for b in strip.bars if b[2] == shade]
            ax.broken_barh(bars, (top, STRIP_IN), color=colour, alpha=0.15 + 0.7 * shade, linewidth=0)
        # A run's name is no formula, whatever signs it holds.
        ax.text(0, top - 0.03, strip.words, transform=ax.get_yaxis_transform(), fontsize=8, parse_math=False)
