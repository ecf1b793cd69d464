"""What a run records: `metrics.jsonl` (the full record), `status.json`, W&B (which may fail), versions of the code."""

import io
import json
import os
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dist_sketch import __version__
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import LARGE, finite, no_links, open_regular, write_atomic, write_json
from dist_sketch.core.ranks import Ranks
from dist_sketch.core.saved import record_line
from dist_sketch.tracking.wandb_run import STEP_AXIS, WandbRun

LONGEST_LINE = 2**20  # bytes of metrics.jsonl; ours have some hundred


class Tracker:
    """Rank 0's log of a training run. On the other ranks every method does nothing.

    Args:
        run: the run's folder.
        wandb: the W&B run, switched off on the other ranks.
    """

    def __init__(self, run: Path, wandb: WandbRun, *, is_main: bool):
        self._run, self.wandb, self._is_main = run, wandb, is_main
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
            write_json(self._run / "status.json", {**values, "time": round(time.time(), 3)})

    def close(self, exit_code: int = 0) -> None:
        """Finishes the W&B run; waits at most the configured timeout."""
        self.wandb.finish(exit_code)


def drop_later_lines(run: Path, step: int) -> None:
    """Removes the lines after `step` from `metrics.jsonl`: a run that resumes from there writes them again."""
    path = run / "metrics.jsonl"
    if path.exists():
        kept = [line for line, record in _records(path) if record["step"] <= step]
        write_atomic(path, "".join(line + "\n" for line in kept))


class Speed:
    """Measures what a step costs: time, wait for data and memory, each on the rank where it is highest."""

    def __init__(self, ranks: Ranks, step: int):
        self._ranks, self._step, self._clock = ranks, step, time.perf_counter()
        self.waited_s = 0.0  # for data, since the last `take`

    def take(self, step: int, batch_size: int) -> dict[str, float]:
        """Measures the steps since the last call; every rank must call it (a small all-reduce).

        Returns:
            Images per second of the run; of the worst rank: seconds per step, share of the time spent waiting for data,
            memory in MB.
        """
        now = time.perf_counter()
        steps, elapsed_s = step - self._step, now - self._clock
        own = [elapsed_s / steps, self.waited_s / elapsed_s, memory_mb(self._ranks.device)]
        self._step, self._clock, self.waited_s = step, now, 0.0
        each = torch.zeros(self._ranks.world_size, len(own), dtype=torch.float64)
        each[self._ranks.rank] = torch.tensor(own, dtype=torch.float64)
        step_s, data_wait, memory = self._ranks.sum(each).amax(0).tolist()
        return {
            "speed/images_per_s": batch_size / step_s,
            "speed/step_s": step_s,
            "speed/data_wait": data_wait,
            "speed/memory_mb": memory,
        }


def memory_mb(device: torch.device) -> float:
    """The peak memory of tensors on a GPU; on a CPU this process's current memory (0 where there is no /proc)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


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
