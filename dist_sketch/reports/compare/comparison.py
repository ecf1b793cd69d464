"""`dist-sketch compare`: training runs and outputs of `infer` side by side on one self-contained page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import step_in, write_atomic
from dist_sketch.core.words import plain
from dist_sketch.metrics.definitions import OPTIMISTIC
from dist_sketch.reports.by_label import COLUMNS, label_groups
from dist_sketch.reports.compare import plot, tables
from dist_sketch.reports.compare.results import Result, read_all
from dist_sketch.reports.compare.scores import RULE, Group, comparable, differences, groups, what_seeds_can_tell
from dist_sketch.reports.compare.tables import Cell
from dist_sketch.reports.ours import refuse_others
from dist_sketch.reports.page import VARIANT_FOLDERS, conjoin, embed, find_picture, render, scripts

MAX_ROWS = 200  # of a table on the page
MAX_SAID = 20  # verdicts on the page
MAX_SECTIONS = 12  # sets of scores on the page that may be compared
MAX_FACES = 6
MAX_CURVES = 60  # runs whose curves are drawn; more of them cannot be told apart
MAX_COLUMNS = 24  # settings beside each other: what differs, and their faces
MAX_SAMPLES = 12  # pictures of training runs without outputs


@dataclass(frozen=True)
class Section:
    """A part that a caller adds at the top of the page."""

    title: str
    columns: Sequence[str] = ()  # of a table; none: no table
    rows: Sequence[Sequence[str]] = ()
    text: Sequence[str] = ()  # paragraphs below the table
    pictures: Sequence[tuple[str, list[tuple[str, Path]]]] = ()  # rows: label, (caption, image file)


def write(
    paths: Sequence[Path], page: Path, *, title: str = "", by: str | None = None, sections: Sequence[Section] = ()
) -> list[str]:
    """Writes the page, and beside it its tables as Markdown (STEM.md) and CSV (STEM-*.csv).

    The first of `paths` is what the others are compared with. Of thousands of runs the page shows only a part, and says
    so; the files beside it hold everything.

    Args:
        by: a label of the outputs' pictures; a table shows the mean scores of the pictures with each of its values.

    Returns:
        The verdicts: each group of seeds against the first, then remarks about single results.

    Raises:
        UserError: a folder cannot be read, no output has the label, the page cannot be written, or would replace a file
            of somebody else.
    """
    if not paths:
        raise UserError("there is nothing to compare: name run folders or output folders of `dist-sketch infer`")
    if page.suffix.lower() not in (".html", ".htm") or page.is_dir():
        raise UserError(f"--out {page}: must be the name of an HTML file, as compare.html")
    refuse_others(page, page.with_suffix(".md"))  # before minutes of work
    results = read_all(paths)
    if by is not None:
        sections = [*sections, _label_section(results, by)]
    seed_groups = groups(results)
    runs = _runs(results, seed_groups)
    summaries = [tables.summarize(run.name, run.result) for run in runs]
    drawn = runs[:MAX_CURVES]
    texts = tables.csv_files(results, seed_groups, summaries)
    files = {page.with_name(f"{page.stem}-{name}.csv"): text for name, text in texts.items()}
    markdown = page.with_suffix(".md")
    others = [f"{len(seed_groups) - 4} more"] * (len(seed_groups) > 4)
    said = verdicts(results, seed_groups)
    config = tables.settings_table(seed_groups)
    content: dict[str, Any] = {
        "title": title or conjoin([*(g.label for g in seed_groups[:4]), *others]),
        "Cell": Cell,
        "results": results,
        "groups": seed_groups,
        "summaries": summaries,
        "verdicts": said,
        "first_verdicts": sorted(said, key=lambda v: v[0] not in ("good", "bad"))[:MAX_SAID],
        "shown": shown,
        "sections": sections,
        "config": tables.narrow(config, MAX_COLUMNS, f"{page.stem}-config.csv"),
        "max_sections": MAX_SECTIONS,
        "score_sections": tables.score_sections(results, seed_groups),
        "plots": [plot.draw(drawn, width) for width in (10.0, 5.0)],
        "runs": [run for run in drawn if run.result.records],
        "curves_left_out": len(runs) - len(drawn),
        "look": plot.look,
        "unlocked": [run.name for run in drawn if run.result.records and not plot.strips([run])],
        "faces": faces(seed_groups),
        "find_picture": find_picture,
        "folders": VARIANT_FOLDERS,
        "samples": samples(seed_groups),
        "rule": RULE,
        "power": what_seeds_can_tell(seed_groups, differences(seed_groups)),
        "losses_differ": any(str(row[0]).startswith("loss.") for row in config.rows),
        "files": [file.name for file in (markdown, *files)],
    }
    files[markdown] = render("compare.md.j2", **content)
    html = render("compare.html.j2", **content, **scripts())
    refuse_others(page, *files)
    write_atomic(page, html)  # first, because its mark is also that of the others
    for file, text in files.items():
        write_atomic(file, text)
    return [plain(sentence) for _, sentence in said]


def _label_section(results: list[Result], by: str) -> Section:
    """The scores by a label; results that have no such label are named below the table."""
    rows: list[tuple[int, list[str]]] = []
    errors = {}
    places: dict[str, int] = {}  # of the label's values
    for r in results:
        try:
            found = label_groups(r.path, r.infer | {"names": r.names}, r.scores, by)
        except UserError as e:
            errors[r.name] = e
            continue
        for group in found:
            place = places.setdefault(group.value, len(places))
            rows.append((place, [group.value, r.name, f"{group.n:,}", *group.means]))
    if not rows:
        raise next(iter(errors.values()))
    text = ["Means over the images of each group. FID and KID need more images than a group has."]
    text += [f"Left out, without scores by this label: {conjoin(list(errors))}."] if errors else []
    rows.sort(key=lambda row: row[0])
    return Section(f"Scores by {by}", [by, "", "images", *COLUMNS], [row for _, row in rows], text)


def shown(rows: Sequence[Sequence[str | Cell]]) -> list[Sequence[str | Cell]]:
    """The rows of a table that fit on the page: the first ones, and further ones that are the best in some column."""
    best = (row for row in rows[MAX_ROWS:] if any(isinstance(c, Cell) and c.kind == "best" for c in row))
    return [*rows[:MAX_ROWS], *islice(best, MAX_ROWS)]


def verdicts(results: list[Result], seed_groups: list[Group]) -> list[tuple[str, str]]:
    """(mood, sentence): each group against the first; then results without scores, unfinished ones and the like."""
    effects = differences(seed_groups)
    said = [tables.verdict(group, seed_groups[0], effects) for group in seed_groups[1:]]
    said = said or [("note", "There is only one setting, so there is nothing to compare it with.")]
    reasons = " ".join(sentence for _, sentence in said)
    for r in results:
        unscored = "has no scores" if r.kind == "output" and r.scores is None else ""
        wrong = [
            w for w in (unscored, r.unfinished, r.unvalidated, r.no_curves) if w and f"{r.name} {w}" not in reasons
        ]
        said += [("warn", f"{r.name} {conjoin(wrong)}.")] if wrong else []
        in_training = r.kind == "run" and r.config.get("checkpoint.choose", "last") != "last"
        said += [("warn", f"{r.name}: {OPTIMISTIC}")] if in_training or r.infer.get("chosen_on_these") else []
    return said


def _runs(results: list[Result], seed_groups: list[Group]) -> list[plot.RunCurve]:
    """Each run once, under the names of all its results."""
    place = {id(r): i for i, g in enumerate(seed_groups) for r in g.results}
    shared: dict[Path, list[Result]] = {}
    for r in results:
        shared.setdefault(r.run, []).append(r)
    runs = []
    for same in shared.values():
        result = max(same, key=lambda r: len(r.records))  # a result has none if its run's folder was reused
        runs.append(plot.RunCurve(", ".join(r.name for r in same), place[id(same[0])], result))
    return runs


def faces(seed_groups: list[Group]) -> dict[str, Any]:
    """The same faces drawn by the first seed of each group: evenly spread, chosen without looking at the scores."""
    outputs = [(g.label, g.results[0]) for g in seed_groups if g.results[0].kind == "output"]
    drawn = outputs[:MAX_COLUMNS]
    others = [set(r.names) for _, r in drawn]
    common = [n for n in drawn[0][1].names if all(n in names for names in others)] if drawn else []
    if any("other pictures" in reason for _, r in drawn for reason in comparable(r, drawn[0][1])):
        common = []
    chosen = [common[i * len(common) // MAX_FACES] for i in range(MAX_FACES)] if len(common) > MAX_FACES else common
    px = 256 if len(drawn) <= 4 else 160
    scored = {label: {i["name"]: i for i in (r.scores or {"images": []})["images"]} for label, r in drawn}

    def shared(folder: str, name: str) -> str:
        """A picture that all outputs have in common, from the first one that still has it."""
        return next((uri for _, r in drawn if (uri := find_picture(r.path / folder, name, px, False))), "")

    rows = [{"name": name, "line": shared("line", name), "real": shared("real", name)} for name in chosen]
    return {"rows": rows, "drawn": drawn, "scored": scored, "px": px, "left_out": len(outputs) - len(drawn)}


def samples(seed_groups: list[Group]) -> list[tuple[str, str]]:
    """(label, picture) of the last samples of the first seed of each group of training runs."""
    shown: list[tuple[str, str]] = []
    for group in seed_groups:
        if len(shown) == MAX_SAMPLES:
            break
        first = group.results[0]
        found = first.run.glob("samples/*.png") if first.kind == "run" else []
        pictures = sorted((step, p) for p in found if (step := step_in(p.stem)) is not None)
        for step, newest in pictures[-1:]:
            shown.append((f"{group.label}, step {step:,}", embed(newest, 1024)))
    return shown
