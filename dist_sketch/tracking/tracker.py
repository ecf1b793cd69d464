"""What a run records: `metrics.jsonl` (the full record), `status.json`, W&B (which may fail), versions of the code."""

import io
import json
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from dist_sketch import __version__
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import LARGE, finite, no_links, open_regular, write_atomic, write_json
from dist_sketch.core.saved import record_line
from dist_sketch.tracking.live_page import LivePage, WritePage
from dist_sketch.tracking.wandb_run import STEP_AXIS, WandbRun

LONGEST_LINE = 2**20  # bytes of metrics.jsonl; ours have some hundred
RECENT_EPOCHS = 8  # whose durations tell how long a step takes
BREAK = 3  # times the usual duration of an epoch


class Tracker:
    """Rank 0's log of a training run. On the other ranks every method does nothing.

    Args:
        run: the run's folder.
        wandb: the W&B run, switched off on the other ranks.
        page: writes the run's page for people; None: there is none.
    """

    def __init__(self, run: Path, wandb: WandbRun, *, is_main: bool, page: WritePage | None = None):
        self._run, self.wandb, self._is_main = run, wandb, is_main
        self._page = LivePage(run, page if is_main else None)
        self._path = run / "metrics.jsonl"

    def log(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Appends one line {"kind", "step", "time", **values}; values with a "/" in their names go to W&B, too."""
        if not self._is_main:
            return
        line = finite({"kind": kind, "step": step, "time": round(time.time(), 3), **values})
        try:
            with open(self._path, "a", encoding="utf-8", opener=no_links) as f:
                f.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as e:
            raise UserError(f"{self._path}: cannot be written ({e.strerror})") from e
        sent = {k: v for k, v in line.items() if "/" in k and isinstance(v, int | float | str)}
        if kind == "epoch":  # its means have the same names as the values of single steps
            sent = {k.replace("loss/", "epoch/"): v for k, v in sent.items()}
        if sent:
            self.wandb.log(sent | {k: line[k] for k in ("epoch", STEP_AXIS) if k in line}, step)

    def status(self, **values: Any) -> None:
        """Writes `status.json`: the state of the run for scripts and schedulers."""
        if self._is_main:
            found = {**values, "time": round(time.time(), 3)}
            self._page.update(found)
            write_json(self._run / "status.json", found)

    def show(self) -> None:
        """Brings the run's page up to date, if that is not too often."""
        self._page.update()

    def close(self, exit_code: int = 0) -> None:
        """Finishes the W&B run; waits at most the configured timeout."""
        self.wandb.finish(exit_code)


def drop_later_lines(run: Path, step: int) -> None:
    """Removes the lines after `step` from `metrics.jsonl`: a run that resumes from there writes them again."""
    path = run / "metrics.jsonl"
    if path.exists():
        kept = [line for line, record in _records(path) if record["step"] <= step]
        write_atomic(path, "".join(line + "\n" for line in kept))


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a `metrics.jsonl` and their contents, without damaged lines, as a killed run may leave one.

    Raises:
        UserError: it is there and cannot be read.
    """
    try:
        with open_regular(path, LARGE) as file:
            lines = io.BufferedReader(file)
            while read := lines.readline(LONGEST_LINE):
                line = read.decode(errors="replace").rstrip("\n")
                if record := record_line(line):
                    yield line, record
    except FileNotFoundError:
        return
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` in order of their steps; none if the file is missing.

    If a killed run left two records of one kind and step, the later one counts.

    Raises:
        UserError: the file cannot be read.
    """
    found = {(record["kind"], record["step"]): record for _, record in _records(run / "metrics.jsonl")}
    return sorted(found.values(), key=lambda record: record["step"])


def seconds_a_step(records: list[dict[str, Any]]) -> float | None:
    """How long a step takes with all that an epoch does, by the newest epochs in a log; None before two are done.

    An epoch that took much longer than the others held a break between two starts of the run, and is left out.
    """
    ends = [r for r in records if r["kind"] == "epoch" and isinstance(r.get("time"), int | float)][-RECENT_EPOCHS:]
    spans = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairwise(ends) if b["step"] > a["step"]]
    spans = [span for span in spans if span > 0]
    return fmean(span for span in spans if span <= BREAK * median(spans)) if spans else None


def versions() -> dict[str, str]:
    """Versions of the packages that decide what is computed."""
    names = ("dist-sketch", "torch", "torchvision", "accelerate", "webdataset", "pillow", "scikit-image")
    return {n: version(n) for n in names} | {"cuda": torch.version.cuda or ""}


def revision() -> str:
    """The commit of this checkout, with "+dirty" if tracked files differ; without a checkout the package's version."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent:  # another project's checkout
            return __version__
        return git("rev-parse", "HEAD") + "+dirty" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return __version__
