"""What a label of a pair may be, such as its style, and how columns of labels stand in JSON files."""

from typing import Annotated, Any

from dist_sketch.core.toml_dataclass import Rule, fits

MOST_LABELS = 100  # of different names; each is a column of the manifest
MOST_TEXT = 100  # characters of a label's name, and of a label that is a text
PLAIN = {bool, int, float, str, type(None)}  # None: a pair that has no such label


def _is_label(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MOST_TEXT and value.isprintable()
    return type(value) in PLAIN and (value is None or fits(value))


def _are_labels(values: list[Any]) -> bool:
    return set(map(type, values)) <= PLAIN and all(map(_is_label, set(values)))  # a set: there may be a million


LabelName = Annotated[
    str, Rule(f"a name of 1 to {MOST_TEXT} printable characters", lambda v: 0 < len(v) <= MOST_TEXT and v.isprintable())
]
Label = Annotated[Any, Rule(f"a number, true, false, or a text of up to {MOST_TEXT} printable characters", _is_label)]
Labels = dict[LabelName, Annotated[list, Rule("a list of numbers, truth values and short texts", _are_labels)]]
