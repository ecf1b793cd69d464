"""Measuring: alternated timings, figures beside their baselines, what machine this is, tables and JSON."""

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from statistics import median
from typing import Any

from dist_sketch import fileio

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "scipy", "pillow", "pytorch-fid", "dist-sketch")
BUSY = 0.25  # load a core, before the bench itself puts any on: from here on others disturb it

Variants = Mapping[str, Callable[[], object]]
Times = dict[str, list[float]]  # seconds of each round, by variant


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure, and how long."""

    size: int = 256
    """Width and height of the networks' images, px; a multiple of 64."""
    batch_size: int = 8
    """Pairs a step."""
    repeats: int = 5
    """Rounds of each comparison; the median counts. In a round each variant runs once, the baseline among them."""
    budget_s: float = 150.0
    """A comparison starts no new round after so long: slow baselines get fewer than --repeats."""
    steps: int = 0
    """Training steps timed at once; 0: 1 on CPUs, 20 on GPUs."""
    table: bool = False
    """step: images/s over batch sizes; always made on GPUs."""
    loss_steps: int = 100
    """step: steps over which the losses of float32 and of the fast precision are compared."""
    source_size: int = 1024
    """loader: width and height of the baseline's JPEGs, px."""
    pairs: int = 24
    """loader, infer: pairs that are drawn for it."""
    workers: int = 0
    """loader: most worker processes to try; 0: one a core, up to 8."""
    index: int = 1_000_000
    """loader: entries of the index whose memory is measured."""
    images: int = 1000
    """metrics: size of the image set; infer: images to draw, at most 64."""
    dims: int = 2048
    """metrics: features of the Fréchet distance with fewer images than that."""
    fid_weights: Path | None = None
    """metrics: file of FID's Inception weights; default: wherever `dist-sketch weights` finds them."""
    step_ms: float = 0.0
    """scaling: step time of the GPU that the model on paper is made for; 0: what was measured here."""
    quick: bool = False
    """Small sizes: shows that everything works, and nothing else."""

    def resolved(self) -> "Options":
        """With the sizes that `quick` stands for."""
        if not self.quick:
            return self
        small = {"size": 64, "batch_size": 4, "repeats": 2, "budget_s": 10.0, "steps": 1, "loss_steps": 4}
        small |= {"source_size": 256, "pairs": 8, "workers": 1, "index": 2000, "images": 8, "dims": 192}
        return replace(self, **{k: min(getattr(self, k) or v, v) for k, v in small.items()})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured value beside its baseline."""

    bench: str
    name: str
    value: float
    """Median over the rounds."""
    unit: str
    low: float
    high: float
    baseline: float
    """In the same unit, from the same rounds."""
    baseline_name: str
    baseline_low: float
    baseline_high: float
    ratio: float
    """How many times better than the baseline: the median over the rounds of each round's own ratio."""
    rounds: int = 1
    note: str = ""


def figure(
    bench: str,
    name: str,
    ours: list[float] | float,
    baseline: list[float] | float,
    *,
    unit: str,
    baseline_name: str,
    lower_is_better: bool = False,
    note: str = "",
) -> Figure:
    """A figure of values that were measured in the same rounds, in order."""
    a, b = (v if isinstance(v, list) else [v] for v in (ours, baseline))
    ratios = [(y, x) if lower_is_better else (x, y) for x, y in zip(a, b, strict=True)]
    return Figure(
        bench=bench,
        name=name,
        value=median(a),
        unit=unit,
        low=min(a),
        high=max(a),
        baseline=median(b),
        baseline_name=baseline_name,
        baseline_low=min(b),
        baseline_high=max(b),
        ratio=median(x / y if y else float("inf") if x else 1.0 for x, y in ratios),
        rounds=len(a),
        note=note,
    )


def rates(times: list[float], work: float) -> list[float]:
    """Seconds of each round -> work a second."""
    return [work / t for t in times]


def synchronize() -> None:
    """Waits until the GPU, if there is one, has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(
    variants: Variants, options: Options, *, warm: int = 1, clock: Callable[[], float] = time.perf_counter
) -> Times:
    """Runs all variants in turn, round after round, so that what disturbs the machine disturbs all of them.

    Args:
        warm: rounds before the first that counts: caches, lazy initialization, autotuning.
        clock: `time.process_time` counts this process's CPU seconds alone, on all cores.
    """
    times: Times = {name: [] for name in variants}
    started = time.monotonic()
    for turn in range(-warm, options.repeats):
        for name, variant in variants.items():
            synchronize()
            since = clock()
            variant()
            synchronize()
            if turn >= 0:
                times[name].append(clock() - since)
        if turn >= 0 and time.monotonic() - started > options.budget_s:
            break
    return times


def rss() -> tuple[int, int]:
    """Resident memory of this process, bytes: now, and at its peak. (ru_maxrss would count the parent's.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
    return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024


def processes() -> BaseContext:
    """How the bench starts processes: each a fork of one that has imported torch and done nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload([f"dist_sketch.bench_{name}" for name in ("step", "loader", "scaling")])
    return context


def alone(function: Callable[[Any], Any], values: list[Any]) -> list[Any]:
    """`function` of each value, each in a new process, all at the same time."""
    with ProcessPoolExecutor(len(values), mp_context=processes(), max_tasks_per_child=1) as pool:
        return list(pool.map(function, values))


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    from dist_sketch.step import resolve_precision

    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = set((found.get("flags") or found.get("Features") or "").split())
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    return {
        "cpu": found.get("model name", platform.processor() or platform.machine()),
        "cores": len(cores()),
        "threads": torch.get_num_threads(),
        "flags": [f for f in CPU_FLAGS if f in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name(0) if gpu else None,
        "gpus": torch.cuda.device_count() if gpu else 0,
        "precision": resolve_precision("auto", device),
        "load_per_core": round(os.getloadavg()[0] / (os.cpu_count() or 1), 2),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def short(value: float) -> str:
    """Three digits that count, without an exponent where a person would not write one."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
        return f"{value:,.{digits}f}"
    return f"{value:.2e}"


def spread(value: float, low: float, high: float) -> str:
    """Median, and the range where there is one."""
    return short(value) if low == high else f"{short(value)} ({short(low)}-{short(high)})"


class Report:
    """Collects the figures of a call, prints each subject's table when it is done, and writes them all as JSON."""

    def __init__(self, options: Options, file: Path | None):
        from rich.console import Console

        self.options, self._file = options, file
        self.console = Console()
        if not self.console.is_terminal:  # a log file has room for the whole table
            self.console = Console(width=150)
        self.machine = machine()
        self.figures: list[Figure] = []
        self.notes: list[dict[str, str]] = []

    def head(self) -> None:
        """Says what machine this is, and whether others use it."""
        m = self.machine
        used = f"{m['gpus']} x {m['gpu']}, " if m["gpu"] else ""
        self.console.print(
            f"{used}{m['cpu']}, {m['cores']} core(s), {', '.join(m['flags'])}; torch {m['versions']['torch']}, "
            f"train.precision auto = {m['precision']}; load a core {m['load_per_core']}",
            highlight=False,
        )
        if m["load_per_core"] > BUSY:
            self.console.print("[yellow]warning: others are using this machine: ratios may hold, rates will not")
        if self.options.quick:
            self.console.print("[yellow]--quick: small sizes; these figures say nothing about real ones")

    def add(self, *figures: Figure) -> None:
        """Takes figures."""
        self.figures += figures

    def note(self, bench: str, text: str) -> None:
        """Takes a sentence that belongs under the subject's table."""
        self.notes.append({"bench": bench, "text": text})

    def show(self, bench: str) -> None:
        """Prints a subject's table and notes, and rewrites the JSON file: a later failure costs nothing of it."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=f"bench {bench}", title_justify="left")
        for head in ("figure", "unit", "here", "baseline", "what the baseline is", "ratio"):
            numbers = head in ("here", "baseline", "ratio")
            table.add_column(head, justify="right" if numbers else "left", no_wrap=numbers)
        for f in (f for f in self.figures if f.bench == bench):
            table.add_row(
                escape(f.name),
                escape(f.unit),
                spread(f.value, f.low, f.high),
                spread(f.baseline, f.baseline_low, f.baseline_high),
                escape(f.baseline_name),
                short(f.ratio),
            )
        self.console.print(table)
        notes = [f"{f.name}: {f.note}" for f in self.figures if f.bench == bench and f.note]
        for note in (*notes, *(n["text"] for n in self.notes if n["bench"] == bench)):
            self.console.print(escape(note), highlight=False)
        self.write()

    def write(self) -> None:
        """Writes the JSON file, if one was asked for."""
        if self._file is not None:
            fileio.write_json(self._file, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What the JSON file holds."""
        return {
            "machine": self.machine,
            "options": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.options).items()},
            "figures": [asdict(f) for f in self.figures],
            "notes": self.notes,
        }
