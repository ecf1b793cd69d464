"""Tables of a comparison as Markdown and as CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from dist_sketch.metrics.definitions import METRICS
from dist_sketch.reports.compare.entries import Entry
from dist_sketch.reports.compare.runs import RunSummary
from dist_sketch.reports.compare.scores import Group, mean_sd, value
from dist_sketch.reports.compare.tables import CONTEXT, VARIANTS, Cell, Grid
from dist_sketch.reports.page import flat


def markdown(grid: Grid) -> str:
    """A table as GitHub's Markdown."""
    lines = [grid.columns, [":--", *["--:"] * (len(grid.columns) - 1)]]
    lines += [[_cell(cell) for cell in row.cells] for row in grid.rows]
    lines[0] = [escape(c) for c in grid.columns]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *(escape(note) for note in grid.notes)])


def _cell(cell: Cell) -> str:
    return f"**{escape(cell.whole)}**" if cell.kind == "best" else escape(cell.whole)


def escape(text: str) -> str:
    """Text that Markdown prints as it stands, on one line."""
    text = " ".join(text.split())
    for letter in "\\|*`[]":
        text = text.replace(letter, "\\" + letter)
    return text.replace("<", "&lt;")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV; None is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()


def scores_csv(part: list[Group]) -> str:
    """One line an entry and variant, with all that decides whether two lines may be compared."""
    keys = [m.key for m in METRICS]
    columns = ["name", "group", "seed", "kind", "variant", "n", "split", "size", "fid_weights_sha256", *keys, "path"]
    rows = []
    for group in part:
        for e in group.entries:
            fid = ((e.scores or {}).get("settings") or {}).get("fid") or {}
            about = [(e.scores or {}).get("n"), e.about.get("split"), e.about.get("size") or e.facts.get("size")]
            for variant in (*VARIANTS, *CONTEXT, "val", "best"):
                figures = [value(e, variant, key) for key in keys]
                if any(v is not None for v in figures):
                    mine = about if variant not in ("val", "best") else [None, "val", e.facts.get("size")]
                    rows.append([e.name, group.label, e.seed, e.kind, variant, *mine, fid.get("weights_sha256"),
                                 *figures, e.path])  # fmt: skip
    return csv_text(columns, rows)


def groups_csv(part: list[Group]) -> str:
    """Mean, standard deviation and number of seeds of each group, variant and metric."""
    rows = []
    for group in part:
        for variant in (*VARIANTS, "val", "best"):
            for m in METRICS:
                mean, sd, n = mean_sd(group, variant, m.key)
                if n:
                    rows.append([group.label, variant, m.key, mean, sd, n])
    return csv_text(["group", "variant", "metric", "mean", "sd", "seeds"], rows)


def config_csv(found: list[Entry]) -> str:
    """All settings and facts, one column an entry."""
    known = [e.config | {f"facts.{k}": v for k, v in flat(e.facts)} for e in found]
    keys = dict.fromkeys(k for column in known for k in column)
    return csv_text(["setting", *(e.name for e in found)], [[k, *(c.get(k) for c in known)] for k in keys])


def runs_csv(runs: list[RunSummary]) -> str:
    """How the runs learned and what they cost, in plain numbers."""
    return csv_text(RunSummary._fields, runs)
