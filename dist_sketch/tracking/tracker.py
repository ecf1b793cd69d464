"""What a run says of itself: `metrics.jsonl` (the truth), `status.json`, and W&B (which can never hurt)."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dist_sketch.core.config import TrackConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import finite, write_atomic, write_json
from dist_sketch.core.ranks import Ranks
from dist_sketch.tracking import wandb_run
from dist_sketch.tracking.provenance import memory_mb
from dist_sketch.tracking.wandb_run import Artifact


class Tracker:
    """Rank 0's log of a run. On the other ranks every method does nothing.

    Args:
        run: the run's folder; `metrics.jsonl` there is cut back to `step`, the checkpoint that the run resumes from.
        run_id: one W&B id for all legs of a run.
        settings: everything resolved, for W&B's configuration.
        uses: what the run is made from.
    """

    def __init__(
        self,
        run: Path,
        track: TrackConfig,
        *,
        job: str,
        run_id: str,
        step: int,
        settings: dict[str, Any],
        is_main: bool,
        uses: Sequence[Artifact] = (),
    ):
        self.run, self.is_main = run, is_main
        self._path = run / "metrics.jsonl"
        if is_main:
            _cut_back(self._path, step)
        else:
            track = TrackConfig(wandb="off")
        self.wandb = wandb_run.WandbRun(run, track, job=job, run_id=run_id, settings=settings, uses=uses)

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Appends one line {"kind", "step", "time", **values}; what has a "/" in its name goes to W&B, too."""
        if not self.is_main:
            return
        line = finite({"kind": kind, "step": step, "time": round(time.time(), 3), **values})
        try:
            with open(self._path, "a", encoding="utf-8") as f:
                f.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as e:
            raise UserError(f"{self._path}: cannot be written ({e.strerror})") from e
        sent = {k: v for k, v in line.items() if "/" in k and isinstance(v, int | float | str)}
        if kind == "epoch":  # its means have the names of the steps' values
            sent = {k.replace("loss/", "epoch/"): v for k, v in sent.items()}
        if sent:
            self.wandb.log(sent | {k: line[k] for k in ("epoch", wandb_run.STEP_AXIS) if k in line}, step)

    def status(self, **values: Any) -> None:
        """Writes `status.json`: the state of the run for scripts and schedulers."""
        if self.is_main:
            write_json(self.run / "status.json", {**values, "time": round(time.time(), 3)})

    def close(self, exit_code: int = 0) -> None:
        """Finishes the W&B run; waits at most the configured timeout."""
        self.wandb.finish(exit_code)


class Speed:
    """What the steps of a run cost, as the slowest, neediest rank has it."""

    def __init__(self, ranks: Ranks, step: int):
        self._ranks, self._step, self._clock = ranks, step, time.perf_counter()
        self.waited_s = 0.0  # for data, since the last `take`

    def take(self, step: int, batch_size: int) -> dict[str, float]:
        """Of the steps since the last call; every rank must call it: one small all-reduce, and a wait for the device.

        Returns:
            Over the run: images/s. Of the rank that has most of it: s a step, share of it that was waited for data,
            memory in MB.
        """
        now = time.perf_counter()
        steps, elapsed_s = step - self._step, now - self._clock
        own = [elapsed_s / steps, self.waited_s / elapsed_s, memory_mb(self._ranks.device)]
        self._step, self._clock, self.waited_s = step, now, 0.0
        each = torch.zeros(self._ranks.world_size, len(own), dtype=torch.float64)
        each[self._ranks.rank] = torch.tensor(own, dtype=torch.float64)
        slowest = self._ranks.sum(each.to(self._ranks.device)).amax(0).tolist()
        names = ("speed/step_s", "speed/data_wait", "speed/memory_mb")
        return {"speed/images_per_s": batch_size / slowest[0], **dict(zip(names, slowest, strict=True))}


def _cut_back(path: Path, step: int) -> None:
    """Drops lines after `step` and a last line cut short: they will be written again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # not splitlines: U+2028 is text
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    write_atomic(path, "".join(line + "\n" for line in kept))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` in order of their steps; none if the file is gone.

    Of two records of a step, as a killed run may leave, the later wins; torn lines are left out.
    """
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    records: dict[tuple[str, int], dict[str, Any]] = {}
    for line in lines:
        try:
            record = json.loads(line)
            records[record["kind"], int(record["step"])] = record
        except (ValueError, KeyError, TypeError):
            continue
    return sorted(records.values(), key=lambda r: r["step"])
