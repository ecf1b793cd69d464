"""The comparison page of an experiment: the paper's tables and figures beside ours, and a verdict on each claim."""

import io
from functools import cache
from pathlib import Path

from dist_sketch.core.fileio import write_atomic
from dist_sketch.core.saved import read_finished_infer
from dist_sketch.experiments import claims
from dist_sketch.experiments.claims import Values
from dist_sketch.experiments.measures import measure
from dist_sketch.experiments.planning import PAGE, Plan, PlannedRun
from dist_sketch.experiments.presets import SCORES, Exhibit
from dist_sketch.metrics.definitions import OPTIMISTIC
from dist_sketch.reports.compare import comparison
from dist_sketch.reports.compare.comparison import Section
from dist_sketch.reports.compare.results import Result, read
from dist_sketch.reports.compare.scores import CONFIDENCE, Group, comparable, mean_text, seed_scores, t_quantile
from dist_sketch.reports.curves import PNG_COLOURS, Curve, Panel, lock_intervals, plot, points, style
from dist_sketch.reports.page import SPLITS, VARIANT_FOLDERS, conjoin, render
from dist_sketch.tracking.tracker import read_metrics

FACES = 4


def build(plan: Plan) -> Path | None:
    """Writes DIR/compare.html and the files beside it; returns its path, or None if nothing has been drawn yet."""
    outputs = [run.output for run in plan.runs if run.drawn()]
    if not outputs:
        return None
    forms = {"table": _table, "faces": _faces, "curves": _curves}
    sections = [forms[part.form](plan, name, part) for name, part in plan.parts.items()]
    if plan.claims:
        sections.append(_claims(plan))
    comparison.write(outputs, plan.out / PAGE, title=plan.preset.title, sections=sections)
    return plan.out / PAGE


def _drawn(plan: Plan, row: str) -> list[PlannedRun]:
    """The finished runs of a row, one for each seed."""
    return [run for seed in range(plan.seeds) if (run := plan.run_of(row, seed)).drawn()]


def _variant(plan: Plan, row: str) -> str:
    return "denoised" if plan.preset.rows[row].noise_removal else "raw"


def _table(plan: Plan, name: str, part: Exhibit) -> Section:
    """The paper's columns, then ours, then the number of seeds."""
    labels = [SCORES[key].label for key in part.scores]
    columns = [part.head, *(f"{c} (the paper)" for c in part.paper), *labels, "seeds"]
    rows: list[list[str]] = []
    results: list[Result] = []
    for i, row in enumerate(part.rows):
        group = Group(row, [read(run.output) for run in _drawn(plan, row)])
        results += group.results
        cells = [plan.preset.rows[row].label, *(values[i] for values in part.paper.values())]
        for key in part.scores:
            cells.append(mean_text(seed_scores(group, _variant(plan, row), key), SCORES[key].digits))
        rows.append([*cells, str(len(group.results))])
    text = [*([part.note] if part.note else []), *_context(part, results)]
    if plan.split == "test":
        text.append("Scored on the test split, by which no weights were chosen.")
    return Section(part.title, columns, rows, text)


def _context(part: Exhibit, results: list[Result]) -> list[str]:
    """The scores of the baselines, and a warning if the scores of the table must not be compared."""
    if not results or results[0].scores is None:
        return []
    reasons = sorted({reason for r in results[1:] for reason in comparable(results[0], r)})
    lines = render("context.j2", scores=results[0].scores, keys=part.scores, reasons=reasons).splitlines()
    chosen = [r.name for r in results if r.infer.get("chosen_on_these")]
    return lines + [f"{conjoin(chosen)}: {OPTIMISTIC}"] * bool(chosen)


def _faces(plan: Plan, name: str, part: Exhibit) -> Section:
    """The line, the drawing of each row and the real sketch of a few people, for the first seed that all rows have."""
    for seed in range(plan.seeds):
        runs = {row: plan.run_of(row, seed) for row in part.rows}
        if all(run.drawn() for run in runs.values()):
            names = read_finished_infer(next(iter(runs.values())).output)["names"]
            count = min(FACES, len(names))
            pictures = [_person(plan, runs, names[i * len(names) // count]) for i in range(count)]
            note = part.note or f"Seed {seed}. The same people, evenly spread over the {SPLITS[plan.split]} split."
            return Section(part.title, text=[note], pictures=pictures)
    return Section(part.title, text=["Not drawn yet, because a line of the plan failed."])


def _person(plan: Plan, runs: dict[str, PlannedRun], person: str) -> tuple[str, list[tuple[str, Path]]]:
    folder = next(iter(runs.values())).output
    pictures = [("line", folder / "line" / f"{person}.png")]
    for row, run in runs.items():
        suffix = read_finished_infer(run.output, "format")["format"]
        file = run.output / VARIANT_FOLDERS[_variant(plan, row)] / f"{person}.{suffix}"
        pictures.append((plan.preset.rows[row].label, file))
    return person, [*pictures, ("real sketch", folder / "real" / f"{person}.png")]


def _curves(plan: Plan, name: str, part: Exhibit) -> Section:
    """Both losses of each row over the steps, as one picture for each row."""
    pictures = []
    for row in part.rows:
        for run in _drawn(plan, row)[:1]:
            file = plan.out / "figures" / f"{name}-{row}.png"
            _draw_losses(run.folder, file)
            pictures.append((plan.preset.rows[row].label, [(f"seed {run.config.train.seed}", file)]))
    note = part.note or "Faint lines: as logged; strong lines: smoothed. Shaded: D or G is locked."
    return Section(part.title, text=[note], pictures=pictures)


def _draw_losses(run: Path, file: Path) -> None:
    """Draws the losses of D and G as a PNG, shaded while the network was locked."""
    records = read_metrics(run)
    train, locks = [r for r in records if r["kind"] == "train"], lock_intervals(records)
    panels = []
    for net in ("d", "g"):
        colour = PNG_COLOURS[net]
        curve = Curve(*points(train, "step", f"loss/{net}"), colour)
        panels.append(Panel(f"loss of {net.upper()}", [curve], {colour: locks[net]}))
    buffer = io.BytesIO()
    with style(PNG_COLOURS):
        plot(panels, "step", 9.0).savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_atomic(file, buffer.getvalue(), durable=False)


def _claims(plan: Plan) -> Section:
    """Each claim with its verdict and the values behind it."""
    cached_measure = cache(measure)  # claims share measures, and those of pictures take a while
    tests, rows = sum(map(claims.comparisons, plan.claims)), []
    for claim in plan.claims:
        values, without = [], []
        for row in claim.rows:
            seeds, label = {}, plan.preset.rows[row].label
            for run in _drawn(plan, row):
                value = cached_measure(claim.measure, run.folder, run.output, _variant(plan, row))
                if value is None:
                    without.append(f"{label}, seed {run.config.train.seed}")
                else:
                    seeds[run.config.train.seed] = value
            values.append(Values(label, plan.run_of(row, 0).name, seeds))
        word, measured = claims.judge(claim, values, tests)
        rows.append([claim.says, word, measured + f" (no value: {'; '.join(without)})" * bool(without)])
    columns = ["claim", "verdict", "measured here"]
    sure = claims.confidence_of(max(1, tests))
    limits = [t_quantile(freedom, sure) for freedom in (2 * plan.seeds - 2, plan.seeds - 1)] if plan.seeds > 1 else []
    rule = render("rule.j2", seeds=plan.seeds, confidence=CONFIDENCE, tests=tests, limits=limits)
    return Section("What is claimed, and what was measured", columns, rows, [rule])
