"""Plots of training runs: curves with their trend, shaded where a network was locked, as SVG for a page."""

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.ndimage import gaussian_filter1d

SMOOTHED_POINTS = 10_000  # most points of a curve that is smoothed
CURVE_POINTS = 1400  # most points of a drawn curve; a screen shows no more
TOO_LARGE = 1e100  # for a plot
PANEL_IN, GAP_IN = 1.9, 0.45  # heights in inches

# Placeholders: `svg` replaces them by variables of the page's style sheet, which has a light and a dark theme.
SVG_COLOURS = {"d": "#100001", "g": "#100002", "v": "#100003", "ink": "#100004", "rule": "#100005"}
SVG_COLOURS |= {f"c{i}": f"#10001{i}" for i in range(8)}  # for runs that share a plot
PNG_COLOURS = {"d": "#2f63a8", "g": "#c2641a", "ink": "#23262b", "rule": "#e2dfd8"}  # the light theme's


class LockInterval(NamedTuple):
    """Steps start <= step < end in which a network was locked."""

    start: int
    end: int
    reason: str


class Curve(NamedTuple):
    """One line of a panel."""

    x: np.ndarray
    y: np.ndarray
    colour: str
    style: str = "-"
    noisy: bool = True  # True: the trend is drawn; False: each point has a marker


class Panel(NamedTuple):
    """Curves that share a y axis."""

    title: str
    curves: list[Curve]
    shaded: dict[str, list[LockInterval]]  # colour -> intervals of the x axis


def lock_intervals(records: list[dict[str, Any]]) -> dict[str, list[LockInterval]]:
    """When D ("d") and G ("g") were locked, from the lock records, or from the train records if there are none."""
    changes = [(r["step"], {"d": not r.get("train_d", True), "g": not r.get("train_g", True)}, r.get("reason"))
               for r in records if r["kind"] == "lock"]  # fmt: skip
    if not changes:
        changes = [(r["step"], {"d": bool(r.get("lock/d")), "g": bool(r.get("lock/g"))}, r.get("lock/reason"))
                   for r in records if r["kind"] == "train"]  # fmt: skip
    changes.append((max((r["step"] + 1 for r in records), default=0), {"d": False, "g": False}, ""))
    found: dict[str, list[LockInterval]] = {"d": [], "g": []}
    for net, intervals in found.items():
        start, why = None, ""
        for step, locked, reason in changes:
            if locked[net] and start is None:
                start, why = step, re.sub(r"^[DG] locked: ", "", str(reason or ""))
            elif not locked[net] and start is not None:
                intervals.append(LockInterval(start, step, why))
                start = None
    return found


def bands(intervals: list[LockInterval]) -> list[tuple[int, int]]:
    """(start, width) of each shaded band; gaps too narrow to be seen are closed."""
    bars: list[tuple[int, int]] = []
    narrow = (intervals[-1].end - intervals[0].start) // CURVE_POINTS if intervals else 0
    for start, end, _ in intervals:
        if bars and start - sum(bars[-1]) <= narrow:
            start = bars.pop()[0]
        bars.append((start, end - start))
    return bars


def points(records: list[dict[str, Any]], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Two columns of the records, without the rows in which one of them is not finite, or too large to be drawn."""
    at, value = (np.array([r.get(key) for r in records], dtype=float) for key in (x, y))  # None becomes NaN
    known = (np.abs(at) < TOO_LARGE) & (np.abs(value) < TOO_LARGE)  # NaN is not smaller than anything
    return at[known] + (x == "epoch"), value[known]  # epochs are logged from 0, and people count from 1


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most CURVE_POINTS points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(y) <= CURVE_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(y)), CURVE_POINTS // 2)
    keep = np.unique([i for part in parts for i in (part[y[part].argmin()], part[y[part].argmax()])])
    return x[keep], y[keep]


def coarse(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most SMOOTHED_POINTS points, means of equal stretches: smoothing costs the square of their number."""
    k = -(-len(y) // SMOOTHED_POINTS)
    if k < 2:
        return x, y
    whole = len(y) // k * k
    return x[:whole].reshape(-1, k).mean(1), y[:whole].reshape(-1, k).mean(1)


def style(colours: dict[str, str]) -> AbstractContextManager[None]:
    """The settings of matplotlib in which a plot must be both drawn and saved."""
    ink, rule = colours["ink"], colours["rule"]
    settings: Any = {
        **{"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left"},
        **{"text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink},
        **{"axes.edgecolor": rule, "grid.color": rule, "grid.linewidth": 0.5},
        **{"axes.grid": True, "axes.grid.axis": "y", "axes.xmargin": 0.01},
        **{"axes.spines.top": False, "axes.spines.right": False, "xtick.major.size": 0, "ytick.major.size": 0},
    }
    return matplotlib.rc_context(settings)


def plot(
    panels: Sequence[Panel], x_label: str, width: float, *, parts: int = 120, raw: bool = True, footer: float = 0.0
) -> Figure:
    """Draws panels one below the other over a common x axis, which counts in whole numbers.

    Args:
        width: of the figure, in inches.
        parts: a noisy curve is smoothed over about this fraction of its length.
        raw: draw the values of noisy curves too, faintly.
        footer: height in inches of an empty panel at the bottom, for the caller to fill.
    """
    heights = [PANEL_IN] * len(panels) + [footer] * (footer > 0)
    total = sum(heights) + GAP_IN * (len(heights) - 1) + 0.85
    figure = Figure(figsize=(width, total), dpi=72)
    gap = GAP_IN * len(heights) / sum(heights)
    figure.subplots_adjust(0.5 / width, 0.5 / total, 1 - 0.25 / width, 1 - 0.35 / total, hspace=gap)
    axes = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, panel in zip(axes, panels, strict=False):
        for curve in panel.curves:
            _draw_curve(ax, curve, parts, raw)
        low, high = ax.dataLim.intervaly
        if "loss" in panel.title and 0 < low < high / 8:  # a loss that falls by much
            ax.set_yscale("log")
            ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
            ax.yaxis.set_major_formatter("{x:g}")
        else:
            ax.ticklabel_format(axis="y", scilimits=(-2, 5))  # learning rates as 2.0 and 1e-4: long labels would be cut
        ax.set_title(panel.title)
        for colour, intervals in panel.shaded.items():
            band = ax.get_xaxis_transform()
            ax.broken_barh(bands(intervals), (0, 1), transform=band, color=colour, alpha=0.16, linewidth=0)
    axes[-1].set_xlabel(x_label)
    axes[-1].xaxis.set(major_locator=MaxNLocator(8 if width > 6 else 5, integer=True), major_formatter="{x:,.0f}")
    return figure


def _draw_curve(ax: Axes, curve: Curve, parts: int, raw: bool) -> None:
    x, y, marker = curve.x, curve.y, "o"
    if curve.noisy and len(y):
        if raw:
            ax.plot(*thin(x, y), color=curve.colour, alpha=0.25, linewidth=0.7)
        x, y = coarse(x, y)
        y, marker = gaussian_filter1d(y, max(1.0, len(y) / parts), mode="reflect"), ""
    ax.plot(*thin(x, y), curve.style, color=curve.colour, linewidth=1.6, marker=marker, markersize=3.5)


def svg(figure: Figure, title: str) -> Markup:
    """A plot as inline SVG whose colours are variables of the page."""
    buffer = io.StringIO()
    # Ids must differ between the plots of a page: an element that is hidden cannot lend its clip path to another one.
    with matplotlib.rc_context({"svg.hashsalt": f"{title}{figure.get_figwidth()}"}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = re.sub(r"^.*?(?=<svg)|<(metadata|style).*?</\1>", "", buffer.getvalue(), flags=re.S)
    text = re.sub(r'(?<=<g) id="[^"]*"', "", text)  # equal in all plots, and nothing refers to them
    text = re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), text)  # 1/100 point is enough
    text = re.sub(r'<svg (.*?)width="\S+" height="\S+"', rf'<svg \1role="img" aria-label="{title}"', text)
    for name, colour in SVG_COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(text)
