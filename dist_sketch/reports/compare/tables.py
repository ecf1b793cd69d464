"""Tables and verdicts of a comparison: what differs, scores over seeds, differences."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dist_sketch.core.config import Config, items
from dist_sketch.metrics.definitions import METRICS, Metric
from dist_sketch.reports.compare.entries import Entry
from dist_sketch.reports.compare.scores import CONFIDENCE, Difference, Group, comparable, difference, mean_sd, value
from dist_sketch.reports.page import conjoin, figure, flat

VARIANTS = ("denoised", "raw")


CONTEXT = {"blank": "a blank page", "input": "the input itself", "reference": "real training sketches"}


UNTOLD = ("run_id", "steps", "global_batch", "wandb")  # beginnings of facts that settings tell, or that tell nothing


WORDS = {"val": "last"}  # of the validation during training


NONE = "–"


HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b")  # of a commit or a file: its first digits tell them apart


NOISE = f"Student's t-test, two-sided, {CONFIDENCE:.0%}"


class Cell(NamedTuple):
    """Text of a table's cell, and how it is meant."""

    text: str
    kind: str = ""  # a class of the page's style sheet: best, better, worse, noise, unknown
    hint: str = ""
    more: str = ""  # small, on a line of its own

    @property
    def whole(self) -> str:
        """All of it on one line."""
        return f"{self.text} {self.more}".rstrip()


class Row(NamedTuple):
    """A row of a table; the first cell names it."""

    cells: list[Cell]
    kind: str = ""  # base: context, not a competitor


class Grid(NamedTuple):
    """A table of a comparison."""

    title: str
    columns: list[str]
    rows: list[Row]
    notes: list[str]


def named(metric: Metric) -> str:
    """A column's heading."""
    return f"{metric.label} {'↑' if metric.sign > 0 else '↓'}"


def used(variants: Iterable[str], found: Iterable[Entry]) -> list[Metric]:
    """The metrics of which there is a figure."""
    found = list(found)
    return [m for m in METRICS if any(value(e, v, m.key) is not None for e in found for v in variants)]


def scores(title: str, part: list[Group], variant: str) -> Grid:
    """Mean scores of comparable groups, with the baselines for context."""
    metrics = used([variant], [e for g in part for e in g.entries])
    rows = []
    for group in part:
        cells = [Cell(group.label, hint=conjoin([e.name for e in group.entries])), Cell(str(len(group.entries)))]
        for m in metrics:
            mean, sd, n = mean_sd(group, variant, m.key)
            known = [x * m.sign for g in part if (x := mean_sd(g, variant, m.key)[0]) == x]
            leads = n and mean * m.sign == max(known)
            best = leads and figure(max(known), m.digits) != figure(min(known), m.digits)
            beaten = [words for base, words in list(CONTEXT.items())[:2] if n and not _beats(mean, group, base, m)]
            text = (figure(mean, m.digits) if n else "–") + "†" * bool(beaten)
            hint = f"Not better than {conjoin(beaten)}" if beaten else ""
            cells.append(Cell(text, "best" if best else "", hint, "" if sd is None else f"± {figure(sd, m.digits)}"))
        rows.append(Row(cells))
    for base, words in CONTEXT.items():
        figures = [value(part[0].entries[0], base, m.key) for m in metrics]
        if any(v is not None for v in figures):
            texts = [figure(v, m.digits) for v, m in zip(figures, metrics, strict=True)]
            rows.append(Row([Cell(words), Cell(""), *map(Cell, texts)], "base"))
    notes = []
    if any(c.text.endswith("†") for row in rows for c in row.cells):
        notes.append("† Not better than a blank page or than the untouched input.")
    return Grid(title, ["", "seeds", *map(named, metrics)], rows, notes)


def _beats(mean: float, group: Group, base: str, m: Metric) -> bool:
    known = value(group.entries[0], base, m.key)
    return known is None or (mean - known) * m.sign > 0


def each(title: str, part: list[Entry], variants: Sequence[str]) -> Grid:
    """The scores of each entry by itself."""
    metrics = used(variants, part)
    rows = []
    for entry in part:
        for variant in variants:
            texts = [entry.name, str(entry.seed), WORDS.get(variant, variant)]
            texts += [figure(value(entry, variant, m.key), m.digits) for m in metrics]
            rows.append(Row(list(map(Cell, texts))))
    return Grid(title, ["", "seed", "", *map(named, metrics)], rows, [])


def differences(title: str, part: list[Group], variants: Sequence[str]) -> Grid:
    """By how much each group is above the first of them."""
    metrics = used(variants, [e for g in part for e in g.entries])
    rows = []
    for group in part[1:]:
        for variant in variants:
            cells = [Cell(group.label), Cell(WORDS.get(variant, variant))]
            for m in metrics:
                found = difference(group, part[0], variant, m.key)
                if found is None:
                    cells.append(Cell("–"))
                    continue
                hint = "" if found.error is None else f"standard error {figure(found.error, m.digits)}"
                mood = "one seed" if found.mood == "unknown" else found.mood
                cells.append(Cell(signed(found.value, m.digits), found.mood, hint, mood))
            rows.append(Row(cells))
    kinds = {cell.kind for row in rows for cell in row.cells}
    notes = ["Noise: the seeds' spread alone explains such a difference."] if "noise" in kinds else []
    notes += ["One seed: what one seed each shows cannot be told from noise."] if "unknown" in kinds else []
    return Grid(title, ["", "", *map(named, metrics)], rows, notes)


def signed(number: float, digits: int) -> str:
    """A difference as text."""
    text = figure(number, digits)
    return text if text.startswith("−") else f"+{text}"


def verdict(group: Group, other: Group) -> tuple[str, str]:
    """What the scores say of two groups.

    Returns:
        (mood, sentence): "good" and "bad" if all that is beyond noise is better, or worse; "warn" where there can be no
        verdict; else "note".
    """
    reasons = comparable(group.entries[0], other.entries[0])
    pair = f"{group.label} against {other.label}"
    if reasons:
        return "warn", f"{pair}: no verdict, because their scores cannot be compared ({'; '.join(reasons)})."
    variant, kind = ("denoised", "denoised") if group.entries[0].scores else ("val", "validation during training")
    found: dict[str, list[tuple[Metric, Difference]]] = {}
    for m in used([variant], [*group.entries, *other.entries]):
        if (d := difference(group, other, variant, m.key)) is not None:
            found.setdefault(d.mood, []).append((m, d))
    if not found:
        return "warn", f"{pair}: no verdict, because nothing was scored in both."
    told = {mood: [f"{m.label} ({signed(d.value, m.digits)})" for m, d in each] for mood, each in found.items()}
    parts = [f"{mood} in {conjoin(told[mood])}" for mood in ("better", "worse") if mood in told]
    if "noise" in found:
        labels = [m.label for m, _ in found["noise"]]
        parts.append(f"within the seeds' noise in {conjoin(labels) if parts else f'all of {conjoin(labels)}'}")
    if "unknown" in told:
        parts.append(f"one seed each, so that no difference can be told from noise: {', '.join(told['unknown'])}")
    mood = {(True, False): "good", (False, True): "bad"}.get(("better" in told, "worse" in told), "note")
    return mood, f"{pair}, {kind}: {'; '.join(parts)}."


def settings(part: list[Group]) -> Grid:
    """What differs between the groups; the seeds always. Paths and what is told to W&B are left out."""
    columns = [[_known(e) for e in g.entries] for g in part]
    order = [k for k, _ in items(Config())]
    keys = list(dict.fromkeys([*order, *(k for column in columns for known in column for k in known)]))
    rows = []
    for key in keys:
        found = [list(dict.fromkeys(_show(known.get(key)) for known in column)) for column in columns]
        # A run that is gone, or that drew nothing, does not differ in what is unknown of it.
        told = {text for texts in found for text in texts if key in order or text != NONE}
        if key == "train.seed" or len(told) > 1:
            rows.append(Row([Cell(key), *(Cell(HASH.sub(r"\1", ", ".join(texts))) for texts in found)]))
    notes = ["Nothing else differs."] if len(rows) == 1 else []
    return Grid("What differs", ["setting", *(g.label for g in part)], rows, notes)


def _known(entry: Entry) -> dict[str, Any]:
    known = {k: v for k, v in entry.config.items() if k != "data.shards" and not k.startswith("track.")}
    known |= {k: v for k, v in flat(entry.facts) if k not in known and not k.startswith(UNTOLD)}
    drawn = {k: entry.about.get(k) for k in ("step", "split", "size", "output_size", "format", "mode", "denoise")}
    return known | {f"infer: {k}": v for k, v in flat(drawn) if entry.kind == "output"}


def _show(setting: Any) -> str:
    if isinstance(setting, bool):
        return "on" if setting else "off"
    return NONE if setting in (None, "") else f"{setting:g}" if isinstance(setting, float) else str(setting)
