"""How the compared runs learned and what they cost, read from their records."""

from typing import Any

import numpy as np

from dist_sketch.reports.compare.results import Result
from dist_sketch.reports.compare.scores import score
from dist_sketch.reports.compare.tables import Cell, PageTable, cells
from dist_sketch.reports.curves import points
from dist_sketch.reports.page import number


def summarize(name: str, result: Result) -> dict[str, Any]:
    """How a run went, in the columns of the CSV file; None for what its records do not say."""
    train = [r for r in result.records if r["kind"] == "train"]
    ends = [r for r in result.records if r["kind"] == "epoch"] or train[-1:]
    scored = [r for r in result.records if isinstance(r.get("val/ssim"), int | float)]
    best = max(scored, key=lambda r: r["val/ssim"], default=None)
    steps = np.diff([0, *(r["step"] for r in train)])
    batch = result.config.get("data.batch_size") or 0
    speed = points(train, "step", "speed/images_per_s")[1]

    def locked(net: str) -> float | None:
        """The mean over steps, not over records, which may stand for different numbers of steps."""
        known = [(r[net], s) for r, s in zip(train, steps, strict=True) if isinstance(r.get(net), int | float)]
        return float(np.average([v for v, _ in known], weights=[s for _, s in known])) if known else None

    def last(records: list[dict[str, Any]], key: str) -> Any:
        return next((r[key] for r in reversed(records) if r.get(key) is not None), None)

    def over_steps(key: str, function: Any) -> float | None:
        values = points(train, "step", key)[1]
        return float(function(values)) if len(values) else None

    epoch = last(ends, "epoch")
    return {
        "name": name,
        "state": str(result.status.get("state") or ("unknown" if result.records else "no history")),
        "step": result.steps_done,
        "steps": result.steps,  # planned
        "epochs": None if epoch is None else epoch + 1,
        "images": last(result.records, "images"),
        "loss_g": last(ends, "loss/g"),  # mean over the last epoch
        "loss_d": last(ends, "loss/d"),
        "val_ssim": score(result, "val", "ssim"),
        "best_ssim": score(result, "best", "ssim"),
        "best_epoch": None if best is None else best.get("epoch", -1) + 1,
        "val_l1": score(result, "val", "l1"),
        "locked_d": locked("lock/d"),  # share of the steps
        "locked_g": locked("lock/g"),
        "device": str(result.facts.get("device") or ""),
        "world_size": result.facts.get("world_size"),
        "images_per_s": over_steps("speed/images_per_s", np.median),
        # Without the breaks between two starts of the run.
        "train_s": float(sum(steps) * batch * np.mean(1 / speed[speed > 0])) if (speed > 0).any() else None,
        "data_wait": over_steps("speed/data_wait", np.median),  # share of that time
        "memory_mb": over_steps("speed/memory_mb", np.max),
    }


def learning_table(runs: list[dict[str, Any]]) -> PageTable:
    """Losses, validation scores and locks of each run."""
    columns = ["", "state", "epochs", "steps", "loss G", "loss D", "last SSIM", "best SSIM", "last L1", "D locked",
               "G locked"]  # fmt: skip
    rows = []
    for r in runs:
        steps = Cell(number(r["step"], 0), small=f"of {r['steps']:,}" if r["steps"] and r["step"] < r["steps"] else "")
        best = Cell(number(r["best_ssim"], 3), small=f"epoch {r['best_epoch']}" if r["best_epoch"] else "")
        losses = (number(r["loss_g"], 3), number(r["loss_d"], 3))
        scores = (number(r["val_ssim"], 3), best, number(r["val_l1"], 4))
        locked = (_percent(r["locked_d"]), _percent(r["locked_g"]))
        rows.append(cells(r["name"], r["state"], number(r["epochs"], 0), steps, *losses, *scores, *locked))
    notes = ["Losses are means over the last epoch; SSIM and L1 are of the validation split, raw, during training. "
             "Locked: share of the steps in which the network was not trained."]  # fmt: skip
    return PageTable("How they learned", columns, rows, notes=notes)


def cost_table(runs: list[dict[str, Any]]) -> PageTable:
    """Speed, time and memory of each run."""
    columns = ["", "processes", "images seen", "time", "images/s", "waited for data", "memory"]
    rows = []
    for r in runs:
        processes = f"{r['world_size'] or '?'} × {r['device'] or '?'}"
        speed = (duration(r["train_s"]), number(r["images_per_s"], 1), _percent(r["data_wait"]))
        memory = "–" if r["memory_mb"] is None else f"{r['memory_mb']:,.0f} MB"
        rows.append(cells(r["name"], processes, number(r["images"], 0), *speed, memory))
    notes = ["Time covers training and its validation, but not the breaks between two starts of a run; images/s is the "
             "median over the run. Only equal machines without other work can be compared."]  # fmt: skip
    return PageTable("What they cost", columns, rows, notes=notes)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def duration(seconds: float | None) -> str:
    """A duration in the two largest units that it needs."""
    if seconds is None:
        return "–"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02} s" if minutes else f"{seconds:.0f} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"
