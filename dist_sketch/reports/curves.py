"""Curves of a run as plots: locks, smoothing, SVG."""

import io
import re
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.ndimage import gaussian_filter1d

from dist_sketch.reports.page import Table

CURVE_POINTS = 1400  # in a drawn curve; more cannot be told apart on a screen


class LockInterval(NamedTuple):
    """Steps start <= step < end in which a network was locked."""

    start: int
    end: int
    reason: str


Locks = dict[str, list[LockInterval]]  # of "d" and "g"


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
                intervals.append(LockInterval(start, step, why))
                start = None
    return found


def bands(intervals: list[LockInterval]) -> list[tuple[int, int]]:
    """(start, width) of what is shaded; gaps that are too narrow to be seen are closed."""
    bars: list[tuple[int, int]] = []
    narrow = (intervals[-1].end - intervals[0].start) // CURVE_POINTS if intervals else 0
    for start, end, _ in intervals:
        if bars and start - sum(bars[-1]) <= narrow:
            start = bars.pop()[0]
        bars.append((start, end - start))
    return bars


# Colours that matplotlib writes, and what the page's style sheet turns them into, by day and by night.
COLOURS = {"d": "#100001", "g": "#100002", "v": "#100003", "ink": "#100004", "rule": "#100005"}
COLOURS |= {f"c{i}": f"#10001{i}" for i in range(8)}  # of runs that share a plot


STYLE: Any = {"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9.5, "axes.titlelocation": "left",
         "text.color": COLOURS["ink"], "axes.labelcolor": COLOURS["ink"], "axes.edgecolor": COLOURS["rule"],
         "xtick.color": COLOURS["ink"], "ytick.color": COLOURS["ink"], "grid.color": COLOURS["rule"],
         "axes.spines.top": False, "axes.spines.right": False, "axes.xmargin": 0.01, "axes.grid": True,
         "axes.grid.axis": "y", "grid.linewidth": 0.5,
         "xtick.major.size": 0, "ytick.major.size": 0}  # fmt: skip


def points(records: list[Table], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """The finite pairs of two columns of the records."""
    pairs = np.array([(r.get(x), r.get(y)) for r in records], dtype=float).reshape(-1, 2)  # None becomes NaN
    at, value = pairs[np.isfinite(pairs).all(1)].T
    return at + (x == "epoch"), value  # epochs are logged from 0, and people count from 1


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most CURVE_POINTS points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(y) <= CURVE_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(y)), CURVE_POINTS // 2)
    keep = np.unique([i for part in parts for i in (part[y[part].argmin()], part[y[part].argmax()])])
    return x[keep], y[keep]


def smooth(value: np.ndarray, parts: int = 120) -> np.ndarray:
    """A curve's trend: its mean over about a `parts`-th of its length at each point."""
    return gaussian_filter1d(value, max(1.0, len(value) / parts), mode="reflect")


def scale(ax: Axes, title: str) -> None:
    """Titles a panel; a loss that falls by much is drawn on a logarithmic axis."""
    low, high = ax.dataLim.intervaly
    if "loss" in title and 0 < 8 * low < high:
        ax.set_yscale("log")
        ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:g}")
    ax.set_title(title)


def count(ax: Axes, label: str, width: float) -> None:
    """Names the lowest panel's x axis, which counts something in whole numbers, on a plot `width` inches wide."""
    ax.set_xlabel(label)
    ax.xaxis.set(major_locator=MaxNLocator(8 if width > 6 else 5, integer=True), major_formatter="{x:,.0f}")


def svg(canvas: Figure, title: str) -> Markup:
    """A plot as inline SVG that takes its colours from the page."""
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", transparent=True)
    text = re.sub(r"^.*?(?=<svg)|<(metadata|style).*?</\1>", "", buffer.getvalue(), flags=re.S)
    text = re.sub(r'(?<=<g) id="[^"]*"', "", text)  # the same in each plot, and nothing refers to them
    text = re.sub(r' d="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), text)  # 1/100 point is enough
    text = re.sub(r'<svg (.*?)width="\S+" height="\S+"', rf'<svg \1role="img" aria-label="{title}"', text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(text)
