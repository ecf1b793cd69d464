"""Mean scores of the pictures that share a label, such as a style: they show where a generator is weak.

Only the scores of single pictures are shown. FID and KID are left out: they compare whole sets, they depend on the
number of pictures, and a group rarely has the thousands that they need.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from dist_sketch.core.errors import UserError
from dist_sketch.core.saved import IMAGE_SCORES
from dist_sketch.core.words import plain
from dist_sketch.metrics.definitions import METRICS
from dist_sketch.reports.page import number

MOST_GROUPS = 20
WITHOUT = "no value"  # of pictures that lack the label
OF_EACH = [m for m in METRICS if m.key in IMAGE_SCORES]
VARIANTS = ("denoised", "raw")
NUMBER, TRUTH, TEXT, NOTHING = range(4)  # kinds of values, in the order of their groups
COLUMNS = [f"{m.label} {m.arrow} {variant}" for m in OF_EACH for variant in VARIANTS]


class LabelGroup(NamedTuple):
    """The scored pictures with one value of a label."""

    value: str
    n: int
    means: list[str]  # a text for each of COLUMNS


def label_groups(out: Path, infer: dict[str, Any], scores: dict[str, Any] | None, label: str) -> list[LabelGroup]:
    """The groups of an output's scored pictures, in the order of their values; pictures without one are the last.

    Args:
        infer: the contents of infer.json, with `names`.
        scores: the contents of metrics.json.

    Raises:
        UserError: there are no scores, or no such label, or it has more than MOST_GROUPS values.
    """
    labels = infer.get("labels", {})
    if not labels:
        raise UserError(
            f"--by {plain(label)}: {out}: its pictures have no labels; pack the pairs with labels (dist-sketch pack "
            "--labels FILE), and draw from these shards"
        )
    if label not in labels:
        raise UserError(f"--by {plain(label)}: {out}: has no such label; it has {plain(', '.join(labels))}")
    if scores is None:
        raise UserError(f"--by {plain(label)}: {out}: has no scores; run `dist-sketch evaluate {out}` first")
    if len(labels[label]) != len(infer["names"]):
        raise UserError(f"{out / 'infer.json'}: labels.{label}: has not a value for each name; draw again")
    value_of = {name: _rank(value) for name, value in zip(infer["names"], labels[label], strict=True)}
    order = sorted(set(value_of.values()))
    if len(order) > MOST_GROUPS:
        raise UserError(
            f"--by {plain(label)}: it has {len(order):,} different values, and a table of groups has at most "
            f"{MOST_GROUPS}; choose another label"
        )
    members: dict[tuple[int, Any], list[dict[str, Any]]] = {value: [] for value in order}
    for image in scores["images"]:
        if image["name"] in value_of:
            members[value_of[image["name"]]].append(image)
    others = {_shown(*value) for value in order if value[0] != TEXT}
    found = []
    for value, images in members.items():
        shown = _shown(*value)
        if value[0] == TEXT and shown in others:  # the text "1" beside the number 1
            shown = f'"{shown}"'
        found += [LabelGroup(shown, len(images), _means(images))] * bool(images)
    return found


def _means(images: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    for m in OF_EACH:
        for variant in VARIANTS:
            values = [value for image in images if (value := image[variant][m.key]) is not None]
            found.append(number(fmean(values) if values else None, m.digits))
    return found


def _rank(value: Any) -> tuple[int, Any]:
    """Equal for equal values of one kind: numbers by size, then false and true, texts, and at last None as 0."""
    kind = NOTHING if value is None else {bool: TRUTH, str: TEXT}.get(type(value), NUMBER)
    return kind, 0 if value is None else value


def _shown(kind: int, value: Any) -> str:
    if kind == NUMBER:
        return str(value).removesuffix(".0")
    return {TRUTH: str(value).lower(), TEXT: value, NOTHING: WITHOUT}[kind]
