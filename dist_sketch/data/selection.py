"""Which pairs of a split are used (`data.where`), and how often each stands in an epoch (`data.weights`).

Both are expressions over the labels that the shards keep for each pair, see `core.expression`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dist_sketch.core.errors import SharedError, UserError
from dist_sketch.core.expression import Expression, Row
from dist_sketch.core.words import one_line
from dist_sketch.data.index import END, Keys
from dist_sketch.data.manifest import read_labels, read_manifest
from dist_sketch.data.shards import Shards

MOST_WEIGHT = 1000.0
MOST_PLACES = 10**8  # of an epoch: its order is a permutation of so many numbers in memory
MOST_NAMED, MOST_SHOWN = 20, 5  # labels in a message, and values of each
T = TypeVar("T")


class Chosen(Shards):
    """Some of the pairs of a split, as if it had no others."""

    def __init__(self, split: Shards, places: NDArray[np.int64]):
        vars(self).update(vars(split))
        self.places = places  # of these pairs in the split
        self.keys = Keys(b"".join(split.keys[i].encode() + END for i in places.tolist()))
        for name in ("shard_numbers", "offsets", "lengths", "hashes"):
            setattr(self, name, getattr(split, name)[places])


def chosen(split: Shards, where: str, setting: str = "data.where") -> Shards:
    """The pairs of the split for which the expression is true; all of them if it is empty.

    Raises:
        UserError: it is no such expression, there is no such label, or it compares a number with a text.
    """
    if not where:
        return split
    expression = Expression(where, setting)
    holds = np.array(_each(split, expression, expression.holds, setting), dtype=bool)
    return Chosen(split, np.flatnonzero(holds))


def refuse_none(found: Shards, split: Shards, where: str, setting: str = "data.where") -> None:
    """Refuses an empty choice.

    Raises:
        UserError: it is one.
    """
    if not len(found):
        raise SharedError(
            f"{setting} = {where!r}: is true for none of the {len(split):,} {split.split} pairs of {split.folder}; "
            f"they have these labels: {_described(split)}"
        )


def weights(shards: Shards, text: str) -> NDArray[np.float64] | None:
    """How often each pair stands in an epoch, (N,); None for an empty expression.

    Raises:
        UserError: as for `chosen`; or a weight is not a number above 0 and up to MOST_WEIGHT, or they are too many.
    """
    if not text:
        return None
    expression = Expression(text, "data.weights")
    found = _each(shards, expression, expression, "data.weights")
    for i, weight in enumerate(found):
        if not isinstance(weight, int | float) or not 0 < weight <= MOST_WEIGHT:
            raise SharedError(
                f"data.weights = {text!r}: gives {'nothing' if weight is None else repr(weight)} for the pair "
                f"{shards.keys[i]!r}; a weight is a number above 0, up to {MOST_WEIGHT:g} (data.where leaves pairs out)"
            )
    result = np.array(found, dtype=np.float64)
    if result.sum() > MOST_PLACES:
        raise SharedError(f"data.weights = {text!r}: an epoch of {result.sum():,.0f} pairs; at most {MOST_PLACES:,}")
    return result


def _each(shards: Shards, expression: Expression, value: Callable[[Row], T], setting: str) -> list[T]:
    """What `value` gives for each pair. Pairs with the same labels have the same, which is computed once."""
    labels, names = _labels(shards), list(expression.names)
    if unknown := [name for name in names if name not in labels]:
        raise SharedError(
            f"{setting}: {shards.folder}: its pairs have no label {unknown[0]!r}; they have these: {_described(shards)}"
        )
    rows: Sequence[tuple[Any, ...]] = [()] * len(shards)
    if names:
        rows = list(zip(*(labels[name] for name in names), strict=True))
    try:
        known = {row: value(dict(zip(names, row, strict=True))) for row in dict.fromkeys(rows)}
    except UserError as e:
        raise SharedError(f"{e}; the labels: {_described(shards)}") from e
    return [known[row] for row in rows]


def _labels(shards: Shards) -> dict[str, list[Any]]:
    """Label -> a value for each pair; of all splits' labels, so that a split may have None for all of its pairs."""
    manifest = read_manifest(shards.folder)
    found = {name: read_labels(shards.folder, manifest, name) for name in manifest["splits"]}
    own, names = found[shards.split], dict.fromkeys(label for labels in found.values() for label in labels)
    places = shards.places.tolist() if isinstance(shards, Chosen) else range(len(shards))
    return {name: [own[name][i] if name in own else None for i in places] for name in names}


def _described(shards: Shards) -> str:
    """The labels and some of their values, as a text for a message."""
    found, labels = [], _labels(shards)
    for name, column in list(labels.items())[:MOST_NAMED]:
        values = sorted({v for v in column if v is not None}, key=lambda v: (isinstance(v, str), v))
        some = ", ".join(map(repr, values[:MOST_SHOWN])) + ", ..." * (len(values) > MOST_SHOWN)
        found.append(f"{name} ({some or 'no values'})")
    more = f" and {len(labels) - MOST_NAMED} more" if len(labels) > MOST_NAMED else ""
    return one_line(", ".join(found) + more) or "none (dist-sketch pack --labels FILE keeps some)"
