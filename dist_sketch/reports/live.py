"""The page of a training run, RUN/index.html: it shows how the run goes on, and later how it went."""

import os
import shlex
import stat
import time
from pathlib import Path
from typing import Any

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import step_in, write_atomic
from dist_sketch.core.saved import read_settings, read_status
from dist_sketch.metrics.definitions import METRICS
from dist_sketch.model.pretrained import WEIGHTS
from dist_sketch.reports import history as histories
from dist_sketch.reports.history import History
from dist_sketch.reports.ours import refuse_others
from dist_sketch.reports.page import changed, number, render, scripts

PAGE = "index.html"
RELOAD_S = 15  # while the run goes on
WAITING_RELOAD_S = 60  # while it is stopped, or has failed: it may be continued
SILENT_EPOCHS, SILENT_S = 3, 600  # after so many epochs, and at least so many seconds without news, the page says so


def build(run: Path, status: dict[str, Any] | None = None) -> Path:
    """Writes RUN/index.html and returns its path. It shows the pictures in RUN/samples, so it belongs into its folder.

    Args:
        status: what RUN/status.json will hold; None: it is read.

    Raises:
        UserError: `run` is not the folder of a run, one of its files is damaged, or the page cannot be written.
    """
    if not (run / "config.json").is_file():
        raise UserError(f"{run}: {'is not the folder of a run' if run.is_dir() else 'there is no such folder'}")
    if (run / WEIGHTS).is_file():
        draw = f"dist-sketch infer --run {shlex.quote(str(run))} --input SHARDS --out OUT"
        raise UserError(f"{run}: is an exported generator, which has no history; draw with it: `{draw}`")
    page = run / PAGE
    refuse_others(page)
    status = read_status(run) if status is None else status
    kept, history = read_settings(run), histories.read(run, status)
    facts, settings = kept.get("facts") or {}, kept.get("config") or {}
    steps = facts.get("steps") or status.get("steps")
    state = status.get("state") or "unknown"
    going = state not in ("finished", "stopped", "failed", "unknown")
    left_s = histories.seconds_left(history, steps) if going and steps else None
    html = render(
        "live.html.j2",
        **scripts("live.js"),
        folder=str(run.resolve()),
        name=run.resolve().name,
        status=status,
        state=state,
        going=going,
        facts=facts,
        settings=settings,
        changed=changed(settings),
        history=history,
        steps=steps,
        left_s=left_s,
        latest=_latest(history),
        moments=_moments(run, history, facts.get("steps_an_epoch")),
        reload_s=0 if state == "finished" else RELOAD_S if going else WAITING_RELOAD_S,
        written=time.time(),
        silent_s=max(SILENT_S, SILENT_EPOCHS * _epoch_s(history)) if going else None,
    )
    write_atomic(page, html, durable=False)
    return page


def _latest(history: History) -> dict[str, str]:
    """The newest values by which one sees whether the run goes well, with their names."""
    found = {}
    train = [r for r in history.records if r["kind"] == "train"]
    for label, key, digits in (("images/s", "speed/images_per_s", 1), ("s/step", "speed/step_s", 3)):
        if train and train[-1].get(key) is not None:
            found[label] = number(train[-1][key], digits)
    if train and (wait := train[-1].get("speed/data_wait")) is not None:
        found["waits for data"] = f"{100 * wait:.1f} %"
    if train and (times := train[-1].get("speed/slowest_times")) is not None:
        found["slowest rank"] = f"{train[-1].get('speed/slowest_rank', 0):.0f}, {times:.2f} × the median"
    if train and (memory := train[-1].get("speed/memory_mb")):
        found["memory"] = f"{memory:,.0f} MB"
    scored = [r for r in history.records if r["kind"] == "val"]
    for m in METRICS:
        if scored and (value := scored[-1].get(f"val/{m.key}")) is not None:
            found[f"{m.label} {m.arrow}"] = number(value, m.digits)
    return found


def _epoch_s(history: History) -> float:
    """The duration of the newest epoch; 0 if it is unknown."""
    times = [r["time"] for r in history.records if r["kind"] == "epoch" and isinstance(r.get("time"), int | float)]
    return max(0.0, times[-1] - times[-2]) if len(times) > 1 else 0.0


def _moments(run: Path, history: History, steps_an_epoch: int | None) -> list[dict[str, str]]:
    """The pictures of the fixed validation faces in the order of their steps: relative address, and what to say."""
    scores = {r["step"]: r.get("val/ssim") for r in history.records if r["kind"] == "val"}
    found = []
    for path in run.glob("samples/*.png"):
        step = step_in(path.stem)
        if step is not None and stat.S_ISREG(os.lstat(path).st_mode):  # a link may lead to what is not ours
            epoch = f"epoch {step // steps_an_epoch:,}, " if steps_an_epoch else ""
            ssim = "" if scores.get(step) is None else f", SSIM of the validation {number(scores[step], 3)}"
            found.append((step, {"src": f"samples/{path.name}", "text": f"{epoch}step {step:,}{ssim}"}))
    return [moment for _, moment in sorted(found, key=lambda f: f[0])]
