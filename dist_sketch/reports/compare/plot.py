"""Curves of several runs on one plot, and strips below it that show when their networks were locked."""

import warnings
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from dist_sketch.core.words import plain
from dist_sketch.reports.compare.results import Result
from dist_sketch.reports.curves import SVG_COLOURS, Curve, Panel, plot, points, style, svg

PANELS = (  # (title, kind of record, key)
    ("loss of G", "train", "loss/g"),
    ("loss of D", "train", "loss/d"),
    ("SSIM on the validation split", "val", "val/ssim"),
    ("SCOOT on the validation split", "val", "val/scoot"),
    ("FID-64 on the validation split", "val", "val/fid_64"),
)
HUES = sum(name.startswith("c") for name in SVG_COLOURS)
MAX_STRIPS = 36  # with more, only the first run of each group has strips, as far as there is room
PARTS, LEVELS = 200, 5  # of a strip: parts along the run, shades
STRIP_IN, LABEL_IN = 0.11, 0.2  # heights of a strip and of the text above it


class RunCurve(NamedTuple):
    """A run on the plot."""

    name: str
    group: int  # index; the seeds of a group share a colour
    result: Result

    def images(self, steps: np.ndarray) -> np.ndarray:
        """The number of images that the run had seen at these steps."""
        return steps * int(self.result.config.get("data.batch_size") or 1)


class Strip(NamedTuple):
    """When one network of a run was locked."""

    label: str
    group: int
    bars: list[tuple[float, float, float]]  # start and width in images seen, share of the steps there (above 0)


def look(group: int) -> tuple[str, str]:
    """Colour and line style of a group."""
    return f"c{group % HUES}", ("-", "--", ":")[group // HUES % 3]


def strips(runs: list[RunCurve]) -> list[Strip]:
    """The locks of all runs; of the first run of each group only, if there are too many to read."""
    found = [s for run in runs for s in _strips(run)]
    if len(found) > MAX_STRIPS:
        first = {run.group: run for run in reversed(runs)}
        found = [s for run in runs if first[run.group] is run for s in _strips(run)][:MAX_STRIPS]
    return found


def _strips(run: RunCurve) -> list[Strip]:
    train = [r for r in run.result.records if r["kind"] == "train"]
    edges = np.array([0, *(r["step"] for r in train)], float)
    found = []
    for net in ("d", "g"):
        share = np.clip([r.get(f"lock/{net}") or 0.0 for r in train], 0, 1)
        if not share.any() or not edges[-1]:
            continue
        locked = np.concatenate([[0], np.cumsum(share * np.diff(edges))])  # steps, up to each edge
        at = np.linspace(0, edges[-1], min(PARTS, max(1, len(train) // 2)) + 1)
        level = np.ceil(np.diff(np.interp(at, edges, locked)) / np.diff(at) * LEVELS - 1e-6) / LEVELS
        bars: list[tuple[float, float, float]] = []
        for (start, end), shade in zip(pairwise(run.images(at).tolist()), level.tolist(), strict=True):
            if bars and bars[-1][2] == shade:
                start = bars.pop()[0]
            bars.append((start, end - start, shade))
        label = f"{run.name}: {net.upper()} locked in {locked[-1] / edges[-1]:.0%} of the steps"
        found.append(Strip(label, run.group, [b for b in bars if b[2] > 0]))
    return found


def draw(runs: list[RunCurve], width: float) -> Markup:
    """The plot as an SVG `width` inches wide; empty if there is nothing to draw."""
    panels = []
    for title, kind, key in PANELS:
        curves = []
        for run in runs:
            colour, line = look(run.group)
            steps, values = points([r for r in run.result.records if r["kind"] == kind], "step", key)
            curves.append(Curve(run.images(steps), values, SVG_COLOURS[colour], line, kind == "train"))
        if any(len(curve.x) > 1 for curve in curves):
            panels.append(Panel(title, curves, {}))
    if not panels:
        return Markup()
    below = strips(runs)
    height = len(below) * (STRIP_IN + LABEL_IN)
    with style(SVG_COLOURS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's fonts draw the names, not matplotlib's
        figure = plot(panels, "images seen", width, parts=60, raw=len(runs) <= 3, footer=height)
        if below:
            _draw_strips(figure.axes[-1], below, height)
        return svg(figure, "Curves of all runs")


def _draw_strips(ax: Axes, below: list[Strip], height: float) -> None:
    ax.set(yticks=[], ylim=(height, 0))
    ax.spines["left"].set_visible(False)
    for i, strip in enumerate(below):
        colour, top = SVG_COLOURS[look(strip.group)[0]], i * (STRIP_IN + LABEL_IN) + LABEL_IN
        for shade in sorted({b[2] for b in strip.bars}):
            bars = [b[:2] for b in strip.bars if b[2] == shade]
            ax.broken_barh(bars, (top, STRIP_IN), color=colour, alpha=0.15 + 0.7 * shade, linewidth=0)
        # A run's name may hold "$", which would begin a formula.
        ax.text(0, top - 0.03, plain(strip.label), transform=ax.get_yaxis_transform(), fontsize=8, parse_math=False)
