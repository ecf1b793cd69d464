"""How the compared runs learned and what they cost, read off their records."""

from typing import Any, NamedTuple

import numpy as np

from dist_sketch.reports.compare.entries import Entry
from dist_sketch.reports.compare.scores import value
from dist_sketch.reports.compare.tables import Cell, Grid, Row
from dist_sketch.reports.curves import points
from dist_sketch.reports.page import figure


class RunSummary(NamedTuple):
    """How a run went, in plain numbers; None where its records do not tell."""

    name: str
    state: str
    step: int
    steps: int | None  # that it was to make
    epochs: int | None
    images: int | None
    loss_g: float | None  # mean over the last epoch
    loss_d: float | None
    val_ssim: float | None
    best_ssim: float | None
    best_epoch: int | None
    val_l1: float | None
    locked_d: float | None  # share of the steps
    locked_g: float | None
    device: str
    world_size: int | None
    images_per_s: float | None  # median
    train_s: float | None  # without the breaks between legs
    data_wait: float | None  # share of that time, median
    memory_mb: float | None  # largest


def progress(name: str, entry: Entry) -> RunSummary:
    """Reads a run's records."""
    train = [r for r in entry.records if r["kind"] == "train"]
    ends = [r for r in entry.records if r["kind"] == "epoch"] or train[-1:]
    scored = [r for r in entry.records if isinstance(r.get("val/ssim"), int | float)]
    best = max(scored, key=lambda r: r["val/ssim"]) if scored else {}
    steps = np.diff([0, *(r["step"] for r in train)])
    batch = entry.config.get("data.batch_size") or 0
    speed = points(train, "step", "speed/images_per_s")[1]

    def share(key: str) -> float | None:
        known = [(r[key], s) for r, s in zip(train, steps, strict=True) if isinstance(r.get(key), int | float)]
        return float(np.average([v for v, _ in known], weights=[s for _, s in known])) if known else None

    def last(records: list[dict[str, Any]], key: str) -> Any:
        return next((r[key] for r in reversed(records) if r.get(key) is not None), None)

    def most(key: str, function: Any) -> float | None:
        values = points(train, "step", key)[1]
        return float(function(values)) if len(values) else None

    epoch = last(ends, "epoch")
    return RunSummary(
        name=name,
        state=str(entry.status.get("state") or ("unknown" if entry.records else "no history")),
        step=entry.done,
        steps=entry.steps,
        epochs=None if epoch is None else epoch + 1,
        images=last(entry.records, "images"),
        loss_g=last(ends, "loss/g"),
        loss_d=last(ends, "loss/d"),
        val_ssim=value(entry, "val", "ssim"),
        best_ssim=value(entry, "best", "ssim"),
        best_epoch=best.get("epoch", -1) + 1 if best else None,
        val_l1=value(entry, "val", "l1"),
        locked_d=share("lock/d"),
        locked_g=share("lock/g"),
        device=str(entry.facts.get("device") or ""),
        world_size=entry.facts.get("world_size"),
        images_per_s=float(np.median(speed)) if len(speed) else None,
        train_s=float(sum(steps) * batch * np.mean(1 / speed[speed > 0])) if (speed > 0).any() else None,
        data_wait=most("speed/data_wait", np.median),
        memory_mb=most("speed/memory_mb", np.max),
    )


def learning(runs: list[RunSummary]) -> Grid:
    """Losses, validation scores and locks of each run."""
    rows = [
        Row([
            *(Cell(r.name), Cell(r.state), Cell(_whole(r.epochs))),
            Cell(_whole(r.step), more=f"of {r.steps:,}" if r.steps and r.step < r.steps else ""),
            *(Cell(figure(r.loss_g, 3)), Cell(figure(r.loss_d, 3)), Cell(figure(r.val_ssim, 3))),
            Cell(figure(r.best_ssim, 3), more=f"epoch {r.best_epoch}" if r.best_epoch else ""),
            *(Cell(figure(r.val_l1, 4)), Cell(_percent(r.locked_d)), Cell(_percent(r.locked_g))),
        ])
        for r in runs
    ]  # fmt: skip
    columns = ["", "state", "epochs", "steps", "loss G", "loss D", "last SSIM", "best SSIM", "last L1", "D locked",
               "G locked"]  # fmt: skip
    notes = ["Losses are means over the last epoch; SSIM and L1 are of the validation split, raw, during training. "
             "Locked: share of the steps in which the network was not trained."]  # fmt: skip
    return Grid("How they learned", columns, rows, notes)


def cost(runs: list[RunSummary]) -> Grid:
    """Speed, time and memory of each run."""
    rows = [
        Row([
            *(Cell(r.name), Cell(f"{r.world_size or '?'} × {r.device or '?'}"), Cell(_whole(r.images))),
            *(Cell(duration(r.train_s)), Cell(figure(r.images_per_s, 1)), Cell(_percent(r.data_wait))),
            Cell("–" if r.memory_mb is None else f"{r.memory_mb:,.0f} MB"),
        ])
        for r in runs
    ]  # fmt: skip
    columns = ["", "processes", "images seen", "time", "images/s", "waited for data", "memory"]
    notes = ["Time is that of training with its validation, without breaks between legs; images/s the median over the "
             "run. Compare them only between equal machines that had nothing else to do."]  # fmt: skip
    return Grid("What they cost", columns, rows, notes)


def _whole(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def duration(seconds: float | None) -> str:
    """Seconds as people say it."""
    if seconds is None:
        return "–"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02} s" if minutes else f"{seconds:.0f} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"
