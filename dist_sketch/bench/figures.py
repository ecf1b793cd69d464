"""Measured figures beside their baselines: tables and JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dist_sketch.bench.machine import machine
from dist_sketch.bench.options import BenchOptions
from dist_sketch.core import fileio

BUSY = 0.25  # load a core, before the bench itself puts any on: from here on others disturb it


@dataclass(frozen=True, kw_only=True)
class Measurement:
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
) -> Measurement:
    """A figure of values that were measured in the same rounds, in order."""
    a, b = (v if isinstance(v, list) else [v] for v in (ours, baseline))
    ratios = [(y, x) if lower_is_better else (x, y) for x, y in zip(a, b, strict=True)]
    return Measurement(
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


def short(value: float) -> str:
    """Three digits that count, without an exponent where a person would not write one."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
        return f"{value:,.{digits}f}"
    return f"{value:.2e}"


def spread(value: float, low: float, high: float) -> str:
    """Median, and the range where there is one."""
    return short(value) if low == high else f"{short(value)} ({short(low)}-{short(high)})"


class BenchReport:
    """Collects the figures of a call, prints each subject's table when it is done, and writes them all as JSON."""

    def __init__(self, options: BenchOptions, file: Path | None):
        from rich.console import Console

        self.options, self._file = options, file
        self.console = Console()
        if not self.console.is_terminal:  # a log file has room for the whole table
            self.console = Console(width=150)
        self.machine = machine()
        self.figures: list[Measurement] = []
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

    def add(self, *figures: Measurement) -> None:
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
