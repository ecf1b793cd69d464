"""Tables and verdicts of a comparison: what differs, scores over seeds, differences."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dist_sketch.core.config import Config, items
from dist_sketch.metrics.definitions import METRICS, Metric
from dist_sketch.reports.compare.results import Result
from dist_sketch.reports.compare.scores import (
    Group,
    comparable,
    comparable_sets,
    difference,
    mean_sd,
    score,
    seed_scores,
)
from dist_sketch.reports.page import conjoin, flat, number

VARIANTS = ("denoised", "raw")
BASELINES = {"blank": "a blank page", "input": "the input itself", "reference": "real training sketches"}
SPLITS = {"val": "validation ", "train": "training ", "test": "test "}
VARIANT_LABELS = {"val": "last"}  # of the validation during training
HIDDEN_FACTS = ("run_id", "steps", "global_batch", "wandb")  # prefixes of facts that are redundant or uninteresting
HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b")  # of a commit or a file: its first 12 digits are shown


class Cell(NamedTuple):
    """A table's cell."""

    text: str
    kind: str = ""  # class of the style sheet: best, better, worse, noise, unknown, words
    hint: str = ""
    small: str = ""  # a second line in small type


class PageTable(NamedTuple):
    """A table of the page; the first cell of a row names it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    baselines: Sequence[Sequence[Cell]] = ()  # further rows, which are not ranked
    notes: Sequence[str] = ()


class ScoreSection(NamedTuple):
    """Tables of scores that may be compared with each other."""

    title: str
    tables: list[PageTable]
    notes: list[str]


def cells(*values: str | Cell) -> list[Cell]:
    """A row of a table."""
    return [v if isinstance(v, Cell) else Cell(v) for v in values]


def score_sections(results: list[Result], groups: list[Group]) -> list[ScoreSection]:
    """The tables of scores, one section for each set of results whose scores may be compared."""
    sections = []
    for members in comparable_sets(results):
        part = [g for g in groups if g.results[0] in members]
        first = members[0]
        variants: Sequence[str]
        if first.scores is None:
            variants = ("val",)
            title, notes = "Validation during training", ["Of raw drawings, without noise removal."]
            tables = [score_table("Last scores", part, "val"), score_table("Best scores", part, "best")]
        else:
            variants, notes = VARIANTS, _fid_notes(first.scores["settings"].get("fid") or {})
            split = SPLITS.get(first.infer.get("split") or "", "")
            title = f"Scores of {first.scores['n']:,} {split}portraits at {first.scores.get('size')} px"
            tables = [score_table(v.capitalize(), part, v) for v in VARIANTS]
        if len(part) > 1:
            tables.append(difference_table(f"Against {part[0].label}", part, variants))
        if len(members) > len(part):
            tables.append(seed_table("Each seed by itself", members, variants))
        if _scored_metrics(variants, members):
            sections.append(ScoreSection(title, tables, notes))
    return sections


def _fid_notes(fid: dict[str, Any]) -> list[str]:
    sha = str(fid.get("weights_sha256") or "")[:12]
    weights = [f"FID's weights {sha}; resize {fid.get('resize')}."] if sha else []
    return weights + ([f"{fid['note']}."] if fid.get("note") else [])


def _heading(metric: Metric) -> str:
    return f"{metric.label} {'↑' if metric.sign > 0 else '↓'}"


def _scored_metrics(variants: Iterable[str], results: list[Result]) -> list[Metric]:
    """The metrics that have a score in at least one of the results."""
    return [m for m in METRICS if any(score(r, v, m.key) is not None for r in results for v in variants)]


def score_table(title: str, groups: list[Group], variant: str) -> PageTable:
    """Mean scores of comparable groups, and the baselines."""
    metrics = _scored_metrics([variant], [r for g in groups for r in g.results])
    rows = []
    for group in groups:
        name = Cell(group.label, hint=conjoin([r.name for r in group.results]))
        rows.append(cells(name, str(len(group.results)), *(_score_cell(group, groups, variant, m) for m in metrics)))
    baselines = []
    for base, label in BASELINES.items():
        values = [score(groups[0].results[0], base, m.key) for m in metrics]
        if any(v is not None for v in values):
            baselines.append(cells(label, "", *(number(v, m.digits) for v, m in zip(values, metrics, strict=True))))
    beaten = any(cell.text.endswith("†") for row in rows for cell in row)
    notes = ["† Not better than a blank page or than the untouched input."] * beaten
    return PageTable(title, ["", "seeds", *map(_heading, metrics)], rows, baselines, notes)


def _score_cell(group: Group, groups: list[Group], variant: str, m: Metric) -> Cell:
    values = seed_scores(group, variant, m.key)
    if not values:
        return Cell("–")
    mean, sd = mean_sd(values)
    means = [mean_sd(scores)[0] for g in groups if (scores := seed_scores(g, variant, m.key))]
    all_equal = number(max(means), m.digits) == number(min(means), m.digits)  # as printed
    best = mean * m.sign == max(x * m.sign for x in means) and not all_equal
    bases = {label: score(group.results[0], base, m.key) for base, label in BASELINES.items() if base != "reference"}
    beaten_by = [label for label, base in bases.items() if base is not None and (mean - base) * m.sign <= 0]
    return Cell(
        number(mean, m.digits) + "†" * bool(beaten_by),
        kind="best" if best else "",
        hint=f"Not better than {conjoin(beaten_by)}" if beaten_by else "",
        small="" if sd is None else f"± {number(sd, m.digits)}",
    )


def seed_table(title: str, results: list[Result], variants: Sequence[str]) -> PageTable:
    """The scores of each result by itself."""
    metrics = _scored_metrics(variants, results)
    rows = []
    for r in results:
        for v in variants:
            scores = [number(score(r, v, m.key), m.digits) for m in metrics]
            rows.append(cells(r.name, str(r.seed), VARIANT_LABELS.get(v, v), *scores))
    return PageTable(title, ["", "seed", "", *map(_heading, metrics)], rows)


def difference_table(title: str, groups: list[Group], variants: Sequence[str]) -> PageTable:
    """How far each group is above the first one."""
    metrics = _scored_metrics(variants, [r for g in groups for r in g.results])
    rows = []
    for group in groups[1:]:
        for variant in variants:
            row = cells(group.label, VARIANT_LABELS.get(variant, variant))
            for m in metrics:
                row.append(_difference_cell(group, groups[0], variant, m))
            rows.append(row)
    kinds = {cell.kind for row in rows for cell in row}
    notes = ["Noise: the spread of the seeds alone explains such a difference."] * ("noise" in kinds)
    notes += ["One seed: a difference between one seed each may be mere noise."] * ("unknown" in kinds)
    return PageTable(title, ["", "", *map(_heading, metrics)], rows, notes=notes)


def _difference_cell(group: Group, other: Group, variant: str, m: Metric) -> Cell:
    effect = difference(group, other, variant, m.key)
    if effect is None:
        return Cell("–")
    mood = effect.mood(m.sign)
    hint = "" if effect.error is None else f"standard error {number(effect.error, m.digits)}"
    return Cell(_signed(effect.mean, m.digits), mood, hint, "one seed" if mood == "unknown" else mood)


def _signed(difference: float, digits: int) -> str:
    text = number(difference, digits)
    return text if text.startswith("−") else f"+{text}"


def verdict(group: Group, other: Group) -> tuple[str, str]:
    """What the scores say about two groups.

    Returns:
        (mood, sentence): "good" or "bad" if all differences beyond noise are better, or worse; "warn" if no verdict is
        possible; otherwise "note".
    """
    reasons = comparable(group.results[0], other.results[0])
    pair = f"{group.label} against {other.label}"
    if reasons:
        return "warn", f"{pair}: no verdict, because their scores cannot be compared ({'; '.join(reasons)})."
    variant, kind = ("denoised", "denoised") if group.results[0].scores else ("val", "validation during training")
    labels: dict[str, list[str]] = {}  # mood -> metrics with their differences
    for m in _scored_metrics([variant], [*group.results, *other.results]):
        if (effect := difference(group, other, variant, m.key)) is not None:
            kind_of_effect = effect.mood(m.sign)
            label = m.label if kind_of_effect == "noise" else f"{m.label} ({_signed(effect.mean, m.digits)})"
            labels.setdefault(kind_of_effect, []).append(label)
    if not labels:
        return "warn", f"{pair}: no verdict, because nothing was scored in both."
    parts = [f"{mood} in {conjoin(labels[mood])}" for mood in ("better", "worse") if mood in labels]
    if "noise" in labels:
        parts.append(f"within the seeds' noise in {'' if parts else 'all of '}{conjoin(labels['noise'])}")
    if "unknown" in labels:
        parts.append(f"one seed each, so any difference may be mere noise: {', '.join(labels['unknown'])}")
    mood = {(True, False): "good", (False, True): "bad"}.get(("better" in labels, "worse" in labels), "note")
    return mood, f"{pair}, {kind}: {'; '.join(parts)}."


def settings_table(groups: list[Group]) -> PageTable:
    """The settings and facts in which the groups differ, and the seeds; without paths and settings of W&B."""
    columns = [[_settings(r) for r in g.results] for g in groups]
    order = [k for k, _ in items(Config())]
    keys = dict.fromkeys([*order, *(k for column in columns for settings in column for k in settings)])
    rows = []
    for key in keys:
        texts = [list(dict.fromkeys(_show(settings.get(key)) for settings in column)) for column in columns]
        # A fact that is unknown for some results, such as those whose run is gone, is not a difference.
        different = {text for column in texts for text in column if key in order or text != "–"}
        if key == "train.seed" or len(different) > 1:
            rows.append(cells(key, *(HASH.sub(r"\1", ", ".join(column)) for column in texts)))
    notes = ["Nothing else differs."] * (len(rows) == 1)
    return PageTable("What differs", ["setting", *(g.label for g in groups)], rows, notes=notes)


def _settings(result: Result) -> dict[str, Any]:
    """The settings, the facts, and the options of the inference."""
    found = {k: v for k, v in result.config.items() if k != "data.shards" and not k.startswith("track.")}
    found |= {k: v for k, v in flat(result.facts) if k not in found and not k.startswith(HIDDEN_FACTS)}
    infer = {k: result.infer.get(k) for k in ("step", "split", "size", "output_size", "format", "mode", "denoise")}
    return found | {f"infer: {k}": v for k, v in flat(infer) if result.kind == "output"}


def _show(setting: Any) -> str:
    if isinstance(setting, bool):
        return "on" if setting else "off"
    return "–" if setting in (None, "") else f"{setting:g}" if isinstance(setting, float) else str(setting)


def csv_files(results: list[Result], groups: list[Group], runs: list[dict[str, Any]]) -> dict[str, str]:
    """Name -> content of each CSV file."""
    configs = [r.config | {f"facts.{k}": v for k, v in flat(r.facts)} for r in results]
    keys = dict.fromkeys(k for config in configs for k in config)
    settings = [[k, *(c.get(k) for c in configs)] for k in keys]
    return {
        "scores": _scores_csv(groups),
        "groups": _groups_csv(groups),
        "runs": _csv(list(runs[0]), [list(r.values()) for r in runs]),
        "config": _csv(["setting", *(r.name for r in results)], settings),
    }


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as CSV; None is an empty field."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([columns, *rows])
    return buffer.getvalue()


def _scores_csv(groups: list[Group]) -> str:
    """One line for each result and variant, with all that decides whether two lines may be compared."""
    keys = [m.key for m in METRICS]
    columns = ["name", "group", "seed", "kind", "variant", "n", "split", "size", "fid_weights_sha256", *keys, "path"]
    rows = []
    for group in groups:
        for r in group.results:
            fid = ((r.scores or {}).get("settings") or {}).get("fid") or {}
            output = [(r.scores or {}).get("n"), r.infer.get("split"), r.infer.get("size") or r.facts.get("size")]
            training = [None, "val", r.facts.get("size")]
            for variant in (*VARIANTS, *BASELINES, "val", "best"):
                values = [score(r, variant, key) for key in keys]
                if any(v is not None for v in values):
                    about = training if variant in ("val", "best") else output
                    head = [r.name, group.label, r.seed, r.kind, variant, *about, fid.get("weights_sha256")]
                    rows.append([*head, *values, r.path])
    return _csv(columns, rows)


def _groups_csv(groups: list[Group]) -> str:
    """Mean, standard deviation and number of seeds of each group, variant and metric."""
    rows = []
    for group in groups:
        for variant in (*VARIANTS, "val", "best"):
            for m in METRICS:
                if values := seed_scores(group, variant, m.key):
                    rows.append([group.label, variant, m.key, *mean_sd(values), len(values)])
    return _csv(["group", "variant", "metric", "mean", "sd", "seeds"], rows)
