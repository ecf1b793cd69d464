"""Tables and verdicts of a comparison: what differs, scores over seeds, differences, how each run went."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dist_sketch.core.config import Config, items
from dist_sketch.core.fileio import flat
from dist_sketch.core.words import csv_cell
from dist_sketch.metrics.definitions import BASELINES, METRICS, Metric
from dist_sketch.reports.compare.results import Result
from dist_sketch.reports.compare.scores import (
    Effect,
    Group,
    comparable,
    comparable_sets,
    differences,
    mean_sd,
    score,
    seed_scores,
)
from dist_sketch.reports.curves import points
from dist_sketch.reports.page import conjoin, number, render

VARIANTS = ("denoised", "raw")
TITLES = {"denoised": "Denoised", "raw": "Raw", "val": "Last scores", "best": "Best scores"}
VARIANT_LABELS = {"val": "last"}  # of the validation during training
HIDDEN_FACTS = ("run_id", "steps", "global_batch", "wandb")  # prefixes of facts that are redundant or uninteresting
SLOWEST = 1e-6  # images a second; a slower record is damaged
MAX_VALUES = 20  # of a setting in one cell
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
    rows: Sequence[Sequence[str | Cell]]
    baselines: Sequence[Sequence[str | Cell]] = ()  # further rows, which are not ranked
    notes: Sequence[str] = ()


def score_sections(results: list[Result], groups: list[Group]) -> list[tuple[Result, list[PageTable]]]:
    """The first result and the tables of each set of results whose scores may be compared."""
    sections = []
    for members in comparable_sets(results):
        inside = set(members)
        part = [g for g in groups if g.results[0] in inside]
        first = members[0]
        variants = VARIANTS if first.scores else ("val",)
        tables = [score_table(part, variant) for variant in (VARIANTS if first.scores else ("val", "best"))]
        if len(part) > 1:
            tables.append(difference_table(f"Against {part[0].label}", part, variants))
        if len(members) > len(part):
            tables.append(seed_table("Each seed by itself", members, variants))
        if _scored_metrics(variants, members):
            sections.append((first, tables))
    return sections


def _headings(metrics: list[Metric]) -> list[str]:
    return [f"{m.label} {m.arrow}" for m in metrics]


def _scored_metrics(variants: Iterable[str], results: list[Result]) -> list[Metric]:
    """The metrics that have a score in at least one of the results."""
    return [m for m in METRICS if any(score(r, v, m.key) is not None for r in results for v in variants)]


def score_table(groups: list[Group], variant: str) -> PageTable:
    """Mean scores of comparable groups, and the baselines."""
    metrics = _scored_metrics([variant], [r for g in groups for r in g.results])
    rows: list[list[str | Cell]] = []
    means = {m: [mean_sd(v)[0] for g in groups if (v := seed_scores(g, variant, m.key))] for m in metrics}
    for group in groups:
        name = Cell(group.label, hint=conjoin([r.name for r in group.results]))
        rows.append([name, str(len(group.results)), *(_score_cell(group, means[m], variant, m) for m in metrics)])
    baselines = []
    for base, label in BASELINES.items():
        values = [score(groups[0].results[0], base, m.key) for m in metrics]
        if any(v is not None for v in values):
            baselines.append([label, "", *(number(v, m.digits) for v, m in zip(values, metrics, strict=True))])
    beaten = any(cell.text.endswith("†") for row in rows for cell in row if isinstance(cell, Cell))
    notes = ["† Not better than the blank page or the input line."] * beaten
    return PageTable(TITLES[variant], ["", "seeds", *_headings(metrics)], rows, baselines, notes)


def _score_cell(group: Group, means: list[float], variant: str, m: Metric) -> Cell:
    """A mean score, marked if it is the best of the `means` of all groups."""
    values = seed_scores(group, variant, m.key)
    if not values:
        return Cell("–")
    mean, sd = mean_sd(values)
    highest, lowest = max(means), min(means)
    all_equal = number(highest, m.digits) == number(lowest, m.digits)  # as printed
    best = mean == (highest if m.sign > 0 else lowest) and not all_equal
    bases = {label: score(group.results[0], base, m.key) for base, label in BASELINES.items() if base != "reference"}
    beaten_by = [label for label, base in bases.items() if base is not None and (mean - base) * m.sign <= 0]
    beaten_by *= m.has_rivals
    return Cell(
        number(mean, m.digits) + "†" * bool(beaten_by),
        kind="best" if best else "",
        hint=f"Not better than the {conjoin(beaten_by)}" if beaten_by else "",
        small="" if sd is None else f"± {number(sd, m.digits)}",
    )


def seed_table(title: str, results: list[Result], variants: Sequence[str]) -> PageTable:
    """The scores of each result by itself."""
    metrics = _scored_metrics(variants, results)
    rows = []
    for r in results:
        for v in variants:
            scores = [number(score(r, v, m.key), m.digits) for m in metrics]
            rows.append([r.name, str(r.seed), VARIANT_LABELS.get(v, v), *scores])
    return PageTable(title, ["", "seed", "", *_headings(metrics)], rows)


def difference_table(title: str, groups: list[Group], variants: Sequence[str]) -> PageTable:
    """How far each group is above the first one."""
    metrics = _scored_metrics(variants, [r for g in groups for r in g.results])
    rows: list[list[str | Cell]] = []
    effects, kinds = differences(groups), set()
    for group in groups[1:]:
        for variant in variants:
            cells = [_difference_cell(effects.get((group.label, variant, m.key)), m) for m in metrics]
            kinds |= {cell.kind for cell in cells}
            rows.append([group.label, VARIANT_LABELS.get(variant, variant), *cells])
    notes = ["Noise: the spread of the seeds alone explains such a difference."] * ("noise" in kinds)
    notes += ["One seed: a difference between one seed each may be mere noise."] * ("unknown" in kinds)
    return PageTable(title, ["", "", *_headings(metrics)], rows, notes=notes)


def _difference_cell(effect: Effect | None, m: Metric) -> Cell:
    if effect is None:
        return Cell("–")
    mood = effect.mood(m.sign)
    hint = "" if effect.error is None else f"standard error {number(effect.error, m.digits)}"
    return Cell(number(effect.mean, m.digits, "+"), mood, hint, "one seed" if mood == "unknown" else mood)


def verdict(group: Group, other: Group, effects: dict[tuple[str, str, str], Effect]) -> tuple[str, str]:
    """What the scores say about two groups.

    Args:
        effects: the result of `differences` for all groups of the page.

    Returns:
        (mood, sentence): "good" or "bad" if all differences beyond noise are better, or worse; "warn" if no verdict is
        possible; otherwise "note".
    """
    variant = "denoised" if group.results[0].scores else "val"
    found: dict[str, list[str]] = {"better": [], "worse": [], "noise": [], "unknown": [], "equal": []}
    for m in _scored_metrics([variant], [*group.results, *other.results]):
        if (effect := effects.get((group.label, variant, m.key))) is not None:
            kind = effect.mood(m.sign)
            shows = kind == "noise" or round(effect.mean, m.digits) != 0
            label = m.label if kind == "noise" else f"{m.label} ({number(effect.mean, m.digits, '+')})"
            found[kind if shows else "equal"].append(label)
    sentence = render(
        "verdict.j2",
        pair=f"{group.label} against {other.label}",
        reasons=comparable(group.results[0], other.results[0]),
        variant=variant,
        scored=any(found.values()),
        **found,
    )
    mood = {(True, False): "good", (False, True): "bad"}.get((bool(found["better"]), bool(found["worse"])), "note")
    return mood if any(found.values()) else "warn", sentence


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
            rows.append([key, *(HASH.sub(r"\1", _listed(column)) for column in texts)])
    notes = ["Nothing else differs."] * (len(rows) == 1)
    return PageTable("What differs", ["setting", *(g.label for g in groups)], rows, notes=notes)


def narrow(table: PageTable, columns: int, file: str) -> PageTable:
    """The table with its first columns only, and a note that names the file with all of them."""
    left_out = len(table.columns) - 1 - columns
    if left_out <= 0:
        return table
    note = f"{left_out:,} further settings are left out here; all are in {file}. Compare fewer runs to see them."
    rows = [row[: columns + 1] for row in table.rows]
    return table._replace(columns=table.columns[: columns + 1], rows=rows, notes=[*table.notes, note])


def _settings(result: Result) -> dict[str, Any]:
    """The settings, the facts, and the options of the inference."""
    found = {k: v for k, v in result.config.items() if k != "data.shards" and not k.startswith("track.")}
    found |= {k: v for k, v in flat(result.facts) if k not in found and not k.startswith(HIDDEN_FACTS)}
    infer = {k: result.infer.get(k) for k in ("step", "split", "size", "output_size", "format", "mode", "denoise")}
    infer["where"] = result.infer.get("where") or "all pairs"
    return found | {f"infer: {k}": v for k, v in flat(infer) if result.kind == "output"}


def _listed(texts: list[str]) -> str:
    left_out = len(texts) - MAX_VALUES
    return ", ".join([*texts[:MAX_VALUES], *([f"{left_out:,} more"] if left_out > 0 else [])])


def _show(setting: Any) -> str:
    if isinstance(setting, bool):
        return "on" if setting else "off"
    return "–" if setting in (None, "") else f"{setting:g}" if isinstance(setting, float) else str(setting)


def summarize(name: str, result: Result) -> dict[str, Any]:
    """How a run went, in the columns of the CSV file; None for what its records do not say."""
    train = [r for r in result.records if r["kind"] == "train"]
    ends = [r for r in result.records if r["kind"] == "epoch"] or train[-1:]
    scored = [r for r in result.records if isinstance(r.get("val/ssim"), int | float)]
    best = max(scored, key=lambda r: r["val/ssim"], default=None)
    steps = np.diff([0, *(r["step"] for r in train)])
    batch = result.config.get("data.batch_size") or 0
    speed = points(train, "step", "speed/images_per_s")[1]
    speed = speed[speed > SLOWEST]

    def locked(net: str) -> float | None:
        """The mean over steps, not over records, which may stand for different numbers of steps."""
        known = [(min(max(r[net], 0), 1), s) for r, s in zip(train, steps, strict=True) if r.get(net) is not None]
        total = sum(int(s) for _, s in known)
        return sum(v * int(s) for v, s in known) / total if total else None

    def last(records: list[dict[str, Any]], key: str) -> Any:
        return next((r[key] for r in reversed(records) if r.get(key) is not None), None)

    def over_steps(key: str, function: Any) -> float | None:
        values = points(train, "step", key)[1]
        return float(function(values)) if len(values) else None

    epoch = last(ends, "epoch")
    return {
        "name": name,
        "state": str(result.status.get("state") or ("unknown" if result.records else "no history")),
        "step": result.steps_done,
        "steps": result.steps,  # planned
        "epochs": None if epoch is None else epoch + 1,
        "images": last(result.records, "images"),
        "loss_g": last(ends, "loss/g"),  # mean over the last epoch
        "loss_d": last(ends, "loss/d"),
        "val_ssim": score(result, "val", "ssim"),
        "best_ssim": score(result, "best", "ssim"),
        "best_epoch": None if best is None else best.get("epoch", -1) + 1,
        "val_l1": score(result, "val", "l1"),
        "locked_d": locked("lock/d"),  # share of the steps
        "locked_g": locked("lock/g"),
        "device": str(result.facts.get("device") or ""),
        "world_size": result.facts.get("world_size"),
        "images_per_s": over_steps("speed/images_per_s", np.median),
        # Without the breaks between two starts of the run.
        "train_s": float(sum(steps) * batch * np.mean(1 / speed)) if len(speed) else None,
        "data_wait": over_steps("speed/data_wait", np.median),  # share of that time
        "memory_mb": over_steps("speed/memory_mb", np.max),
    }


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
    csv.writer(buffer, lineterminator="\n").writerows([[csv_cell(v) for v in row] for row in (columns, *rows)])
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
