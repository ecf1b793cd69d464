"""What our self-contained HTML pages share: figures as text, pictures as data URIs, curves as inline SVG."""

import base64
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image
from scipy.ndimage import gaussian_filter1d

Table = dict[str, Any]

# Of scores of the very pairs by which the weights were chosen (checkpoint.choose).
FLATTERED = (
    "draws with those weights of its validations on these pairs that had the lowest KID, which flatters it a little"
)

CURVE_POINTS = 1400  # in a drawn curve; more cannot be told apart on a screen


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


def render(template: str, **values: Any) -> str:
    """The page that a template of this package makes of `values`, all of them escaped where it is HTML."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=template.endswith(".html.j2"), undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"figure": figure, "flat": flat, "breakable": breakable}
    return environment.get_template(template).render(**values)


def breakable(text: str) -> Markup:
    """A name that may go on in the next line after its signs."""
    return Markup(re.sub(r"(?<=[._/])(?=\w)", "<wbr>", str(Markup.escape(text))))


def figure(value: float | None, digits: int) -> str:
    """A figure as text; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def flat(tree: Table, prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of a nested dict as (dotted key, value)."""
    leaves = []
    for key, value in tree.items():
        leaves += flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]
    return leaves


def conjoin(words: list[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def data_uri(folder: Path, name: str, px: int, small: bool) -> str:
    """FOLDER/NAME.{png,jpg} as `embed` gives it."""
    files = (folder / f"{name}{suffix}" for suffix in (".png", ".jpg", ".jpeg"))
    return next((uri for file in files if (uri := embed(file, px, small))), "")


def data_uri_of(png: bytes) -> str:
    """A PNG file's bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def embed(file: Path, px: int, small: bool) -> str:
    """A picture as a WebP data URI of at most `px` pixels a side; empty if it cannot be read.

    `small` compresses strongly, for thumbnails; else nothing is lost up to 256 px.
    """
    try:
        with Image.open(file) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    picture.thumbnail((px, px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=not small and px <= 256, quality=60 if small else 92)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


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
