"""`dist-sketch compare`: training runs and inference outputs side by side on one self-contained page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import write_atomic
from dist_sketch.reports.compare import plot, tables, text
from dist_sketch.reports.compare import runs as compare_runs
from dist_sketch.reports.compare.entries import Entry, entries, read
from dist_sketch.reports.compare.faces import faces, samples
from dist_sketch.reports.compare.scores import (
    Difference,
    Group,
    classes,
    comparable,
    difference,
    groups,
    mean_sd,
    value,
)
from dist_sketch.reports.compare.tables import VARIANTS, Cell, Grid, Row
from dist_sketch.reports.page import conjoin, embed, render

CSVS = ("scores", "groups", "runs", "config")


LONG = 24  # letters: what is longer in a caller's table is words, not a figure


# The comparison's own interface, beside `Section` and `build`.
__all__ = ["Difference", "Entry", "Group", "comparable", "difference", "groups", "mean_sd", "read", "value"]


@dataclass(frozen=True)
class Section:
    """What a caller adds on top of the page."""

    title: str
    columns: list[str]  # of a table; none: no table
    rows: list[list[str]]
    text: list[str]  # paragraphs under it
    pictures: Sequence[tuple[str, list[tuple[str, Path]]]] = ()  # rows: label, (caption, image file)


def build(paths: list[Path], page: Path, *, title: str = "", sections: Sequence[Section] = ()) -> Path:
    """`write`, for callers that need the page alone; returns its path."""
    write(paths, page, title=title, sections=sections)
    return page


def write(paths: list[Path], page: Path, *, title: str = "", sections: Sequence[Section] = ()) -> list[str]:
    """Writes the page, and beside it its tables as Markdown (STEM.md) and CSV (STEM-*.csv).

    The first of `paths` is what the others are compared with.

    Returns:
        the verdicts: each setting against the first.

    Raises:
        UserError: something there cannot be read, or the page cannot be written.
    """
    if not paths:
        raise UserError("there is nothing to compare: name run folders or output folders of `dist-sketch infer`")
    if page.suffix.lower() not in (".html", ".htm") or page.is_dir():
        raise UserError(f"--out {page}: must be the name of an HTML file, as compare.html")
    found = entries(paths)
    parts = groups(found)
    runs = _runs(found, parts)
    progress = [compare_runs.progress(c.name, e) for c, e in runs]
    learned, cost = compare_runs.learning(progress), compare_runs.cost(progress)
    config, scored, said = tables.settings(parts), _scored(found, parts), verdicts(found, parts)
    title = title or conjoin([*(g.label for g in parts[:4]), *([f"{len(parts) - 4} more"] if len(parts) > 4 else [])])
    added = [_added(section) for section in sections]
    curves = [c for c, _ in runs]
    html = render(
        "compare.html.j2",
        title=title,
        subject=subject(found, parts),
        parts=parts,
        found=found,
        said=said,
        added=added,
        config=config,
        scored=scored,
        learned=learned,
        cost=cost,
        plots=[plot.draw(curves, width) for width in (10.0, 5.0)],
        legend=_legend(curves, parts),
        unlocked=[c.name for c in curves if c.records and not plot.strips([c])],
        faces=faces(parts),
        samples=samples(parts),
        rule=tables.NOISE,
        weighed=any(row.cells[0].text.startswith("loss.") for row in config.rows),
        files=[page.with_suffix(".md").name, *(f"{page.stem}-{n}.csv" for n in CSVS)],
    )
    for name, content in _csvs(found, parts, progress).items():
        write_atomic(page.with_name(f"{page.stem}-{name}.csv"), content)
    lines = [f"# {text.escape(title)}", subject(found, parts), "\n".join(f"- {text.escape(s)}" for _, s in said)]
    for section in added:
        lines += [f"## {text.escape(section.title)}", *map(text.escape, section.text)]
        lines += [text.markdown(section.grid)] if section.grid else []
    for part in scored:
        lines += [f"## {text.escape(part.title)}", *(f"### {g.title}\n\n{text.markdown(g)}" for g in part.grids)]
    lines += [f"## {grid.title}\n\n{text.markdown(grid)}" for grid in (config, learned, cost)]
    write_atomic(page.with_suffix(".md"), "\n\n".join(line for line in lines if line) + "\n")
    write_atomic(page, html)
    return [sentence for _, sentence in said]


def _csvs(found: list[Entry], parts: list[Group], progress: list[compare_runs.RunSummary]) -> dict[str, str]:
    contents = (text.scores_csv(parts), text.groups_csv(parts), text.runs_csv(progress), text.config_csv(found))
    return dict(zip(CSVS, contents, strict=True))


def subject(found: list[Entry], parts: list[Group]) -> str:
    """What is compared, in a line."""
    drawn = sum(e.kind == "output" for e in found)
    counts = [(drawn, "output"), (len(found) - drawn, "training run")]
    words = conjoin([f"{n} {word}{'s' * (n > 1)}" for n, word in counts if n])
    seeds = {len(g.entries) for g in parts}
    many = f" of {len(parts)} settings" if len(parts) > 1 else " of one setting"
    return words + many + (f", {seeds.pop()} seeds each" if len(seeds) == 1 and seeds != {1} else "")


def verdicts(found: list[Entry], parts: list[Group]) -> list[tuple[str, str]]:
    """(mood, sentence): each group against the first; then what is unfinished, gone, flattered or without scores."""
    said = [tables.verdict(group, parts[0]) for group in parts[1:]]
    said = said or [("note", "There is one setting only: nothing to compare it with.")]
    told = " ".join(sentence for _, sentence in said)
    for e in found:
        unscored = "has no scores" if e.kind == "output" and e.scores is None else ""
        wrong = [w for w in (unscored, e.unfinished, e.note, e.flattered) if w and f"{e.name} {w}" not in told]
        said += [("warn", f"{e.name} {conjoin(wrong)}.")] if wrong else []
    return said


class Scored(NamedTuple):
    """Tables of scores that may be compared with each other."""

    title: str
    grids: list[Grid]
    notes: list[str]


def _scored(found: list[Entry], parts: list[Group]) -> list[Scored]:
    made = []
    for members in classes(found):
        part = [g for g in parts if g.entries[0] in members]
        first = members[0]
        if first.scores is None:
            variants: tuple[str, ...] = ("val",)
            title, notes = "Validation during training", ["Of raw drawings, without noise removal."]
            grids = [tables.scores("Last scores", part, "val"), tables.scores("Best scores", part, "best")]
        else:
            variants, notes = VARIANTS, _how(first.scores["settings"])
            title = f"Scores of {first.scores['n']:,} {_split(first)}portraits at {first.scores.get('size')} px"
            grids = [tables.scores(v.capitalize(), part, v) for v in VARIANTS]
        if len(part) > 1:
            grids.append(tables.differences(f"Against {part[0].label}", part, variants))
        if len(members) > len(part):
            grids.append(tables.each("Each seed by itself", members, variants))
        if tables.used(variants, members):
            made.append(Scored(title, grids, notes))
    return made


def _split(entry: Entry) -> str:
    return {"val": "validation ", "train": "training ", "test": "test "}.get(entry.about.get("split") or "", "")


def _how(settings: dict[str, Any]) -> list[str]:
    fid = settings.get("fid") or {}
    sha, note = str(fid.get("weights_sha256") or "")[:12], str(fid.get("note") or "")
    weights = [f"FID's weights {sha}; resize {fid.get('resize')}."] if sha else []
    return weights + ([f"{note}."] if note else [])


def _runs(found: list[Entry], parts: list[Group]) -> list[tuple[plot.Curve, Entry]]:
    """Each run once, under the names of all entries that it stands behind."""
    place = {id(e): i for i, g in enumerate(parts) for e in g.entries}
    shared: dict[Path, list[Entry]] = {}
    for e in found:
        shared.setdefault(e.run, []).append(e)
    made = []
    for same in shared.values():
        entry = max(same, key=lambda e: len(e.records))  # none, where another run has taken its folder
        batch = int(entry.config.get("data.batch_size") or 1)
        made.append((plot.Curve(", ".join(e.name for e in same), place[id(same[0])], entry.records, batch), entry))
    return made


def _legend(curves: list[plot.Curve], parts: list[Group]) -> list[tuple[tuple[str, str], str]]:
    """((colour, line style), words) of each group that has a curve."""
    made = []
    for i, group in enumerate(parts):
        names = [c.name for c in curves if c.group == i and c.records]
        if names:
            made.append((plot.look(i), f"{group.label} ({len(names)} seeds)" if len(names) > 1 else names[0]))
    return made


class Added(NamedTuple):
    """A caller's section, ready for the page."""

    title: str
    grid: Grid | None
    text: list[str]
    pictures: list[tuple[str, list[tuple[str, str]]]]


def _added(section: Section) -> Added:
    words = ["words" * (max(map(len, column)) > LONG) for column in zip(*section.rows, strict=True)]
    rows = [Row([Cell(c, kind) for c, kind in zip(row, words, strict=True)]) for row in section.rows]
    grid = Grid("", section.columns, rows, []) if section.columns else None
    pictures = [(label, [(caption, embed(file, 256 if len(row) > 1 else 1200, False)) for caption, file in row])
                for label, row in section.pictures]  # fmt: skip
    return Added(section.title, grid, section.text, pictures)
