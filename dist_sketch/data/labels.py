"""Labels of pairs: plain values such as a drawing's style, read from a JSON file and kept with each pair.

The file has a table for each split, in it one for each pair by the name of its files, in it a value for each label:
{"train": {"1": {"style": 0, "smile": true}}}.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import LARGE, read_json
from dist_sketch.core.labels import MOST_LABELS, Label, LabelName
from dist_sketch.core.toml_dataclass import checked
from dist_sketch.core.words import one_line, plain, tell
from dist_sketch.data.layouts import SPLITS
from dist_sketch.data.manifest import read_index, read_labels
from dist_sketch.data.names import encode_key
from dist_sketch.data.recipe import LISTED, FilePair, Recipe


def labelled(recipe: Recipe, pairs: Sequence[FilePair]) -> tuple[list[FilePair], str]:
    """The pairs with the labels that the recipe's file has for them; and a note, empty if no name in it is unknown.

    Labels of a table of pairs stay, if the file has no others for them.

    Raises:
        UserError: the file is missing, or it is not of the form above.
    """
    if recipe.labels is None:
        return list(pairs), ""
    known = _read(recipe.labels)
    # A share of the training pairs may have become other pairs; their labels stay where their files are.
    shares = {"val": recipe.val_fraction, "test": recipe.test_fraction}
    home = {split: "train" for split, share in shares.items() if share}
    places = [(home.get(pair.split, pair.split), pair.key) for pair in pairs]
    found = [replace(pair, labels=known.get(at, pair.labels)) for pair, at in zip(pairs, places, strict=True)]
    used = set(places)
    unknown = [f"{split}/{key}" for split, key in known if (split, key) not in used]
    more = f" and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
    note = f"{recipe.labels}: no pairs have the names of {len(unknown)} entries: {', '.join(unknown[:LISTED])}{more}"
    return found, one_line(plain(note)) if unknown else ""


def columns(pairs: Sequence[FilePair], keys: Sequence[str]) -> dict[str, list[Any]]:
    """Label -> its value for each of the pairs that have these keys, None where a pair has no such label."""
    of_key = {pair.key: pair.labels for pair in pairs}
    labels = [of_key.get(key, {}) for key in keys]
    names = dict.fromkeys(name for one in labels for name in one)
    return {name: [one.get(name) for one in labels] for name in names}


def warn_of_others(shards: Path, manifest: dict[str, Any], recipe: Recipe, pairs: Sequence[FilePair]) -> None:
    """Says so if shards hold other labels than the recipe's file: that alone is no reason to refuse them.

    Raises:
        UserError: the recipe's file cannot be used.
    """
    found, _ = labelled(recipe, pairs)
    for name in manifest["splits"]:
        own = [pair for pair in found if pair.split == name]
        if columns(own, list(read_index(shards, manifest, name).keys)) != read_labels(shards, manifest, name):
            source = recipe.labels or recipe.root
            tell(f"warning: {shards}: holds other labels than {source}; --force packs the pairs again")
            return


def _read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(split, key) -> labels."""
    advice = "the file of labels is {split: {name of a pair: {label: value}}}; rename it if it is another"
    try:
        content = read_json(path, most=LARGE)
        if not isinstance(content, dict):
            raise UserError(f"{path}: is not a table of splits")
        if unknown := [split for split in content if split not in SPLITS]:
            raise UserError(f"{path}: {unknown[0]!r}: a split is one of {', '.join(SPLITS)}")
        checked(dict[str, dict[str, dict[LabelName, Label]]], content, str(path))
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for split, entries in content.items():
            for name, labels in entries.items():
                key = encode_key(name)
                if (split, key) in found:
                    raise UserError(f"{path}: {split}: {name!r} is there twice")
                found[split, key] = {label: value for label, value in labels.items() if value is not None}
    except UserError as e:
        raise UserError(f"{plain(str(e))}; {advice}") from e
    if len({label for labels in found.values() for label in labels}) > MOST_LABELS:
        raise UserError(f"{path}: has more than {MOST_LABELS} different labels; {advice}")
    return found
