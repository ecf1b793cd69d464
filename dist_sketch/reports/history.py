"""How a training run went, for a page: its curves in groups, when its networks were locked, its speed."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from markupsafe import Markup

from dist_sketch.core.saved import read_status
from dist_sketch.metrics.definitions import METRICS
from dist_sketch.reports.curves import SVG_COLOURS, Curve, LockInterval, Panel, lock_intervals, plot, points, style, svg
from dist_sketch.reports.page import number
from dist_sketch.tracking.tracker import read_metrics, seconds_a_step

WIDTH_IN = 5.2  # of a chart
FEWEST_POINTS = 2  # for a line

# Group -> charts over the steps: (title, digits (None: as many as it takes), curves: (key, colour, line style))
CHARTS = {
    "Losses": (
        ("loss of D", 3, (("loss/d", "d", "-"),)),
        ("loss of G", 3, (("loss/g", "g", "-"),)),
        ("L1 term of G's loss", 4, (("loss/g_l1", "g", "-"),)),
        ("SSIM term of G's loss", 3, (("loss/g_ssim", "g", "-"),)),
        ("belief in real sketches (solid), in drawn ones (dotted)", 2, (("d/real", "d", "-"), ("d/fake", "d", ":"))),
    ),
    "Validation": (),  # over the epochs; the metrics that are logged
    "Learning rates": (("learning rates of G (solid) and D (dotted)", None, (("lr/g", "g", "-"), ("lr/d", "d", ":"))),),
    "Speed": (
        ("images a second", 1, (("speed/images_per_s", "v", "-"),)),
        ("seconds a step, of the slowest rank", 3, (("speed/step_s", "v", "-"),)),
        ("share of the time in which a rank waits for data, at most", 3, (("speed/data_wait", "v", "-"),)),
        ("slowest rank's own time, as a multiple of the median's", 2, (("speed/slowest_times", "v", "-"),)),
    ),
}


class Chart(NamedTuple):
    """A curve, or two, on a page."""

    svg: Markup
    latest: str  # the newest value, and the best one of a metric


class History(NamedTuple):
    """What a page shows of a run."""

    groups: list[tuple[str, list[Chart]]]  # title, charts; without those that have nothing to show
    locks: dict[str, list[LockInterval]]  # "d" and "g"
    records: list[dict[str, Any]]
    step: int  # of the run, which may be later than that of the last line of its log
    epochs: int | None  # that are done, also in part
    images: int | None  # that it has seen
    images_per_s: float | None  # median
    seen: bool  # it was scored on pairs that it trained on


NOTHING = History([], {"d": [], "g": []}, [], 0, None, None, None, False)


def read(run: Path, status: dict[str, Any] | None = None) -> History:
    """The history of a run; an empty one if it has none.

    Args:
        status: of the run; None: it is read.

    Raises:
        UserError: its log or its status is there and cannot be read.
    """
    records, status = read_metrics(run), read_status(run) if status is None else status
    train, locks = [r for r in records if r["kind"] == "train"], lock_intervals(records)
    shaded = {SVG_COLOURS[net]: intervals for net, intervals in locks.items()}
    groups = []
    for title, of_group in CHARTS.items():
        if title == "Validation":
            charts = _validation([r for r in records if r["kind"] == "val"])
        else:
            locked = shaded if title == "Losses" else {}
            made = (_over_steps(train, name, digits, lines, locked) for name, digits, lines in of_group)
            charts = [chart for chart in made if chart]
        groups += [(title, charts)] * bool(charts)
    last = train[-1] if train else {}
    step = max(int(status.get("step") or 0), *(r["step"] for r in records[-1:]), 0)
    speeds = points(train, "step", "speed/images_per_s")[1]
    images = last.get("images")
    if images is not None and last["step"]:
        images = images * step // last["step"]
    return History(
        groups=groups,
        locks=locks,
        records=records,
        step=step,
        epochs=_epochs(status, last),
        images=images,
        images_per_s=float(median(speeds)) if len(speeds) else None,
        seen=any("seen/ssim" in r for r in records if r["kind"] == "val"),
    )


def _epochs(status: dict[str, Any], last: dict[str, Any]) -> int | None:
    """The number of epochs that were begun: of a finished run all of them."""
    begun = last["epoch"] + 1 if "epoch" in last else None
    done = status.get("epoch")
    return max((n for n in (begun, done) if n is not None), default=None)


def _over_steps(
    train: list[dict[str, Any]],
    title: str,
    digits: int | None,
    lines: Sequence[tuple[str, str, str]],
    shaded: dict[str, list[LockInterval]],
) -> Chart | None:
    curves = [Curve(*points(train, "step", key), SVG_COLOURS[colour], line) for key, colour, line in lines]
    ends = [float(curve.y[-1]) for curve in curves if len(curve.y)]
    latest = [f"{end:.3g}" if digits is None else number(end, digits) for end in ends]
    return _chart(Panel(title, curves, shaded), "step", f"now {' and '.join(latest)}")


def _validation(scored: list[dict[str, Any]]) -> list[Chart]:
    """A chart for each metric that was logged."""
    charts = []
    for m in METRICS:
        curve = Curve(*points(scored, "epoch", f"val/{m.key}"), SVG_COLOURS["v"], noisy=False)
        if len(curve.y):
            best = int((m.sign * curve.y).argmax())
            latest = f"now {number(float(curve.y[-1]), m.digits)}, best {number(float(curve.y[best]), m.digits)} "
            latest += f"(epoch {curve.x[best]:,.0f})"
            if chart := _chart(Panel(f"{m.label} {m.arrow}", [curve], {}), "epoch", latest):
                charts.append(chart)
    return charts


def _chart(panel: Panel, x: str, latest: str) -> Chart | None:
    """None if there is no line to draw yet."""
    if max(len(curve.x) for curve in panel.curves) < FEWEST_POINTS:
        return None
    with style(SVG_COLOURS):
        return Chart(svg(plot([panel], x, WIDTH_IN), panel.title), latest)


def seconds_left(history: History, steps: int) -> float | None:
    """The time that a run needs from its last step to step `steps`; None if nothing is known yet.

    By the time of its newest epochs; before two of them are done, by that of its steps.
    """
    a_step = seconds_a_step(history.records)
    if a_step is None:
        measured = points([r for r in history.records if r["kind"] == "train"], "step", "speed/step_s")[1]
        if not len(measured):
            return None
        a_step = float(median(measured))
    return max(steps - history.step, 0) * a_step
