"""How the bench measures: timings in turns, figures beside their baselines, the machine, tables and JSON."""

import os
import platform
import re
import resource
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dist_sketch.bench.options import BenchOptions
from dist_sketch.core import cpus, fileio
from dist_sketch.core.precision import resolve_precision
from dist_sketch.core.ranks import Ranks

BUSY = 0.25  # load of a core before the bench starts; above this, others disturb the measurements
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
RATES = ("images/s", "pairs/s", "pairs/core s", "GB/s", "TFLOP/s")  # units in which more is better
PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "scipy", "pillow", "pytorch-fid", "dist-sketch")

Variants = Mapping[str, Callable[[], object]]
Times = dict[str, list[float]]  # seconds of each round, by variant


def rates(times: list[float], work: float) -> list[float]:
    """Seconds of each round -> work per second."""
    return [work / t for t in times]


def interleaved(
    variants: Variants,
    options: BenchOptions,
    *,
    warm: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    ranks: Ranks | None = None,
) -> Times:
    """Runs all variants in turn, round after round, so that a disturbance of the machine affects all of them.

    Args:
        warm: rounds before the first that counts: caches, lazy initialization, autotuning.
        clock: `time.process_time` counts only this process's CPU seconds, on all cores.
        ranks: processes that call this together; they start each variant at the same time.
    """
    times: Times = {name: [] for name in variants}
    finish: Callable[[], object] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    started = time.monotonic()
    for turn in range(-warm, options.repeats):
        for name, variant in variants.items():
            if ranks is not None:
                ranks.wait()
            finish()
            since = clock()
            variant()
            finish()
            if turn >= 0:
                times[name].append(clock() - since)
        late = time.monotonic() - started > options.budget_s
        if turn >= 0 and (late if ranks is None else ranks.broadcast(late)):
            break
    return times


def in_new_processes(function: Callable[[Any], Any], values: Collection[Any]) -> list[Any]:
    """`function` of each value, each in a new process, all at the same time.

    The processes are forks of one that has only imported torch and the package, so that they start quickly.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([f"dist_sketch.bench.{name}" for name in ("step", "loader", "scaling")])
    with ProcessPoolExecutor(len(values), mp_context=context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(function, value) for value in values]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()  # raises the first failure, which may cause others
        return [future.result() for future in futures]


class BenchReport:
    """Collects the figures of all subjects, prints a table for each subject, and writes all of them as JSON."""

    def __init__(self, options: BenchOptions, file: Path | None):
        self.options, self._file = options, file
        self.subject = ""  # of the figures and notes that are added next
        self.console = Console()
        if not self.console.is_terminal:  # a log file has room for the whole table
            self.console = Console(width=150)
        self.machine = machine()
        self.figures: list[dict[str, Any]] = []
        self.notes: list[dict[str, str]] = []

    def head(self) -> None:
        """Prints what machine this is, and whether others use it."""
        m = self.machine
        used = f"{m['gpus']} x {m['gpu']}, " if m["gpu"] else ""
        self.console.print(
            f"{used}{m['cpu']}, {m['cores']} core(s), {', '.join(m['flags'])}; torch {m['versions']['torch']}, "
            f"train.precision auto = {m['precision']}; load of a core {m['load_per_core']}",
            highlight=False,
        )
        if m["load_per_core"] > BUSY:
            self.console.print("[yellow]warning: others are using this machine: ratios may hold, rates will not")
        if self.options.quick:
            self.console.print("[yellow]--quick: small sizes; these figures say nothing about real ones")

    def add(self, name: str, ours: list[float], baseline: list[float], unit: str, about: str, note: str = "") -> None:
        """Adds a figure from the values of the same rounds, in order.

        "ratio" says how many times better ours is than the baseline: the median over the ratios of the rounds.
        """
        pairs = zip(ours, baseline, strict=True) if unit in RATES else zip(baseline, ours, strict=True)
        figure = {
            "bench": self.subject,
            "name": name,
            "value": median(ours),
            "unit": unit,
            "low": min(ours),
            "high": max(ours),
            "baseline": median(baseline),
            "baseline_name": about,
            "baseline_low": min(baseline),
            "baseline_high": max(baseline),
            "ratio": median(x / y if y else float("inf") if x else 1.0 for x, y in pairs),
            "rounds": len(ours),
            "note": note,
        }
        self.figures.append(figure)

    def note(self, text: str) -> None:
        """Adds a sentence below the subject's table."""
        self.notes.append({"bench": self.subject, "text": text})

    def show(self) -> None:
        """Prints the subject's table and notes, and writes the JSON file, so that a later failure loses nothing."""
        table = Table(title=f"bench {self.subject}", title_justify="left")
        for head in ("figure", "unit", "here", "baseline", "what the baseline is", "ratio"):
            numbers = head in ("here", "baseline", "ratio")
            table.add_column(head, justify="right" if numbers else "left", no_wrap=numbers)
        figures = [f for f in self.figures if f["bench"] == self.subject]
        for f in figures:
            here = _spread(f["value"], f["low"], f["high"])
            there = _spread(f["baseline"], f["baseline_low"], f["baseline_high"])
            table.add_row(escape(f["name"]), f["unit"], here, there, escape(f["baseline_name"]), short(f["ratio"]))
        self.console.print(table)
        notes = [f"{f['name']}: {f['note']}" for f in figures if f["note"]]
        for note in (*notes, *(n["text"] for n in self.notes if n["bench"] == self.subject)):
            self.console.print(escape(note), highlight=False)
        self.write()

    def write(self) -> None:
        """Writes the JSON file, if one was asked for."""
        if self._file is None:
            return
        options = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.options).items()}
        values = {"machine": self.machine, "options": options, "figures": self.figures, "notes": self.notes}
        fileio.write_json(self._file, values)


def short(value: float) -> str:
    """Three significant digits, with an exponent only for very small and very large values."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
        return f"{value:,.{digits}f}"
    return f"{value:.2e}"


def _spread(value: float, low: float, high: float) -> str:
    """The median, and the range if there is one."""
    return short(value) if low == high else f"{short(value)} ({short(low)}-{short(high)})"


def memory() -> tuple[int, int]:
    """Resident memory of this process in bytes: now, and its peak; of both the peak where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # macOS; on Linux this figure would include the parent's
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak, peak
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
    return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024


def machine() -> dict[str, Any]:
    """Describes the machine that the figures are measured on."""
    text = ""
    with suppress(OSError):  # only Linux has it
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    found = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = set((found.get("flags") or found.get("Features") or "").split())
    gpu = torch.cuda.is_available()
    return {
        "cpu": found.get("model name", platform.processor() or platform.machine()),
        "cores": len(cpus.usable()),
        "threads": torch.get_num_threads(),
        "flags": [f for f in CPU_FLAGS if f in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name(0) if gpu else None,
        "gpus": torch.cuda.device_count() if gpu else 0,
        "precision": resolve_precision("auto", torch.device("cuda" if gpu else "cpu")),
        "load_per_core": round(os.getloadavg()[0] / (os.cpu_count() or 1), 2),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
    }
