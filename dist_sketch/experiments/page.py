"""The comparison page of an experiment: the paper's tables and figures beside ours, and a verdict on each claim."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dist_sketch.core import fileio
from dist_sketch.experiments import claims
from dist_sketch.experiments.claims import Values
from dist_sketch.experiments.measures import KINDS, measure
from dist_sketch.experiments.planning import PAGE, Plan, PlannedRun
from dist_sketch.experiments.presets import Exhibit
from dist_sketch.reports import page
from dist_sketch.reports.compare import comparison
from dist_sketch.reports.compare.comparison import Section
from dist_sketch.reports.curves import bands, count, lock_intervals, points, smooth, thin
from dist_sketch.tracking.tracker import read_metrics

FACES = 4


BASELINES = {"reference": "other real sketches", "input": "the lines themselves", "blank": "a blank page"}


Pictures = list[tuple[str, list[tuple[str, Path]]]]


def build(plan: Plan) -> Path | None:
    """Writes DIR/compare.html and what lies beside it; returns its path, or None if nothing has been drawn yet."""
    done = [job for job in plan.jobs if job.drawn()]
    if not done:
        return None
    build_part = {"table": _table, "faces": _faces, "curves": _curves}
    sections = [build_part[part.form](plan, name, part) for name, part in plan.parts.items()]
    if plan.claims:
        sections.append(_claims(plan))
    return comparison.build([j.output for j in done], plan.out / PAGE, title=plan.preset.title, sections=sections)


def _jobs(plan: Plan, row: str) -> Iterator[PlannedRun]:
    """The jobs of a row that are done, one a seed."""
    return (job for seed in range(plan.seeds) if (job := plan.job(row, seed)).drawn())


def _variant(plan: Plan, row: str) -> str:
    return "denoised" if plan.preset.rows[row].noise_removal else "raw"


def _table(plan: Plan, name: str, part: Exhibit) -> Section:
    """The paper's columns, then ours, then how many seeds are in them."""
    columns = [part.head, *(f"{c} (the paper)" for c in part.paper), *(KINDS[s].label for s in part.scores), "seeds"]
    rows: list[list[str]] = []
    entries: list[comparison.Entry] = []
    for i, row in enumerate(part.rows):
        found = [comparison.read(job.output) for job in _jobs(plan, row)]
        group, entries = comparison.Group(row, found), entries + found
        cells = [plan.preset.rows[row].label, *(figures[i] for figures in part.paper.values())]
        for score in part.scores:
            mean, sd, n = comparison.mean_sd(group, _variant(plan, row), score)
            cells.append(_mean_sd(mean if n else None, sd, KINDS[score].digits))
        rows.append([*cells, str(len(found))])
    return Section(
        title=part.title, columns=columns, rows=rows, text=[*([part.note] * bool(part.note)), *_scale(part, entries)]
    )


def _mean_sd(mean: float | None, sd: float | None, digits: int) -> str:
    if mean is None or math.isnan(mean):
        return page.figure(None, digits)
    return page.figure(mean, digits) + (f" ± {page.figure(sd, digits)}" if sd is not None else "")


def _scale(part: Exhibit, entries: list[comparison.Entry]) -> list[str]:
    """What else there is to compare with, and whether these figures may be compared with each other at all."""
    if not entries or entries[0].scores is None:
        return []
    text = []
    for key, words in BASELINES.items():
        scores = entries[0].scores["baselines"].get(key) or {}
        figures = [
            f"{KINDS[s].label} {page.figure(scores[s], KINDS[s].digits)}"
            for s in part.scores
            if scores.get(s) is not None
        ]
        text += [f"{words}: {', '.join(figures)}"] if figures else []
    reasons = sorted({r for e in entries[1:] for r in comparison.comparable(entries[0], e)})
    sentences = [f"On the same scale, n = {entries[0].scores['n']}: {'; '.join(text)}."] if text else []
    return sentences + ([f"Not to be compared with each other: {'; '.join(reasons)}."] if reasons else [])


def _faces(plan: Plan, name: str, part: Exhibit) -> Section:
    """The line, each row's drawing and the real sketch, of a few people; of the first seed that all rows have."""
    for seed in range(plan.seeds):
        jobs = {row: plan.job(row, seed) for row in part.rows}
        if all(job.drawn() for job in jobs.values()):
            return Section(
                title=part.title,
                columns=[],
                rows=[],
                text=[part.note or f"Seed {seed}. The same people, evenly spread over the validation split."],
                pictures=[_people(plan, jobs, i) for i in range(FACES) if i < len(_names(jobs))],
            )
    return Section(title=part.title, columns=[], rows=[], text=["Not drawn yet: a line of the plan failed."])


def _names(jobs: dict[str, PlannedRun]) -> list[str]:
    return list(fileio.read_json(next(iter(jobs.values())).output / "infer.json")["names"])


def _people(plan: Plan, jobs: dict[str, PlannedRun], i: int) -> tuple[str, list[tuple[str, Path]]]:
    names, folder = _names(jobs), next(iter(jobs.values())).output
    person = names[i * len(names) // min(FACES, len(names))]
    pictures = [("line", folder / "line" / f"{person}.png")]
    for row, job in jobs.items():
        suffix = fileio.read_json(job.output / "infer.json")["format"]
        kind = {"raw": "raw", "denoised": "sketch"}[_variant(plan, row)]
        pictures.append((plan.preset.rows[row].label, job.output / kind / f"{person}.{suffix}"))
    return person, [*pictures, ("real sketch", folder / "real" / f"{person}.png")]


def _curves(plan: Plan, name: str, part: Exhibit) -> Section:
    """Both losses of each row, over the steps, as one picture a row."""
    pictures: Pictures = []
    for row in part.rows:
        job = next(_jobs(plan, row), None)
        if job is not None:
            file = plan.out / "figures" / f"{name}-{row}.png"
            draw_losses(read_metrics(job.run), file)
            pictures.append((plan.preset.rows[row].label, [(f"seed {job.config.train.seed}", file)]))
    text = [part.note or "Faint: as logged; strong: smoothed. Shaded: D or G is locked."]
    return Section(title=part.title, columns=[], rows=[], text=text, pictures=pictures)


def draw_losses(records: list[dict[str, Any]], file: Path) -> None:
    """Loss_D and Loss_G as a PNG, with the locks shaded."""
    import io

    canvas = Figure(figsize=(9, 4.5), dpi=110, layout="constrained")
    train, locks = [r for r in records if r["kind"] == "train"], lock_intervals(records)
    for ax, net in zip(canvas.subplots(2, sharex=True), "dg", strict=True):
        x, y = points(train, "step", f"loss/{net}")
        ax.plot(*thin(x, y), color="C0", alpha=0.3, linewidth=0.7)
        if len(y):
            ax.plot(*thin(x, smooth(y)), color="C0", linewidth=1.6)
        ax.broken_barh(bands(locks.get(net, [])), (0, 1), transform=ax.get_xaxis_transform(), color="0.5", alpha=0.2)
        ax.set_ylabel(f"Loss_{net.upper()}")
    count(ax, "step", 9)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", metadata={"Software": None})
    fileio.write_atomic(file, buffer.getvalue(), durable=False)


def _claims(plan: Plan) -> Section:
    """The paper's sentences, the verdict, and the figures behind it."""
    rows, known = [], dict[tuple[str, str, str], float | None]()
    for claim in plan.claims:
        values = []
        for row in claim.rows:
            seeds = {}
            for job in _jobs(plan, row):
                key = (claim.measure, job.name, _variant(plan, row))
                if key not in known:
                    known[key] = measure(claim.measure, job.run, job.output, key[2])
                if (found := known[key]) is not None:
                    seeds[job.config.train.seed] = found
            values.append(Values(plan.preset.rows[row].label, plan.job(row, 0).name, seeds))
        word, sentence = claims.judge(claim, values)
        rows.append([claim.says, word, sentence])
    return Section(
        title="What is claimed, and what was measured",
        columns=["claim", "verdict", "measured here"],
        rows=rows,
        text=[claims.rule(plan.seeds)],
    )
