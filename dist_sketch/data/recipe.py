"""Recipes: where the pairs of a data set lie, and the list of its pairs."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import find_file, read_toml
from dist_sketch.core.toml_dataclass import from_dict
from dist_sketch.core.words import one_line
from dist_sketch.data import listing, tables
from dist_sketch.data.image_files import Half
from dist_sketch.data.layouts import (
    SPLIT_WORDS,
    SPLITS,
    Direction,
    Folders,
    LayoutName,
    NoLayout,
    recognised,
)
from dist_sketch.data.listing import EXTENSIONS, printable, within
from dist_sketch.data.names import encode_key, fraction, matched, natural, short

LABELS = "annotations.json"  # in a folder of pairs
LISTED = 10  # problems that one error message names


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A data set on disk: which folders below `root` are lines and which are sketches, in each split.

    A recipe's TOML file has the same fields, except `root`.
    """

    name: str = ""
    license: str = "not stated"
    description: str = ""
    root: Path = Path()
    inside: str | None = None
    """Sub-folder of the root that holds the data, if it exists."""
    splits: dict[str, Folders] = field(default_factory=dict)
    layout: LayoutName | None = None
    """The layout in which `data.layouts` finds the splits; None in a recipe that has them itself."""
    direction: Direction = "AtoB"
    """Which sides are the lines if no name says so: AtoB: A, or the left halves of pictures that show both."""
    labels: Path | None = None
    """JSON file of the pairs' labels, relative to the root, as `data.labels` reads it."""
    val_fraction: float = 0.0
    """Share of the pairs that goes to `val`, by a stable hash of the name; only if there is no such split."""
    test_fraction: float = 0.0
    """Share of the pairs that goes to `test` likewise: the pairs with the largest hashes."""
    extensions: list[str] = field(default_factory=lambda: list(EXTENSIONS))
    """File name extensions of images, in lower case; other files are passed over."""


@dataclass(frozen=True)
class FilePair:
    """A line drawing and its sketch; `key` is its name in shards, `name` is the stem of its files."""

    key: str
    name: str
    split: str
    line: Path
    sketch: Path | None
    labels: dict[str, Any] = field(default_factory=dict)
    halves: tuple[Half, Half] | None = None
    """Which half of its picture the line is, and which the sketch, if one picture shows both."""

    def sides(self) -> list[tuple[str, Path, Half | None]]:
        """What is there of "line" and "sketch": the file, and which half of it; None: the whole."""
        line, sketch = self.halves or (None, None)
        sides = [("line", self.line, line)]
        return sides if self.sketch is None else [*sides, ("sketch", self.sketch, sketch)]


@dataclass(frozen=True)
class Problem:
    """A file (relative to the root) that cannot be used, and why."""

    file: str
    why: str


def load(
    source: str,
    root: Path | None = None,
    val_fraction: float | None = None,
    layout: LayoutName | None = None,
    direction: Direction | None = None,
    test_fraction: float | None = None,
) -> Recipe:
    """Finds the recipe for what the user names as the source of the pairs.

    Args:
        source: a folder in one of the layouts of `data.layouts`, a table of pairs as `data.tables` reads it, or, with
            `root`, the name of a recipe in shards/ or the path of a recipe's TOML file.
        root: the folder that a recipe's folders are relative to.
        val_fraction, test_fraction, direction: replace the recipe's.
        layout: the layout of the folder, if it may be more than one.

    Raises:
        UserError: no such source, it lies in no layout, one of its folders is missing or leaves the root, or the recipe
            is malformed.
    """
    path = Path(source)
    if root is None and path.is_dir():
        recipe = folder_recipe(path, layout, direction or "AtoB")
    elif root is None and tables.is_table(path):
        recipe = table_recipe(path)
    else:
        try:
            file = find_file("shards", source)
        except UserError as e:
            known = "a folder" if path.is_dir() else "a table" if tables.is_table(path) else None
            hint = f"is {known}: give it without --root" if known else "is not a folder either"
            raise UserError(f"{e}; it {hint}") from e
        if root is None:
            raise UserError(f"{source}: a recipe needs --root DIR, the folder that contains its images")
        recipe = _toml_recipe(file, root, direction)
    if layout not in (None, recipe.layout):
        raise UserError(f"--layout {layout}: is only for a folder; {source} says itself where its pairs are")
    if direction not in (None, recipe.direction):
        raise UserError(f"--direction {direction}: {source} says itself which side is which; omit it")
    given: dict[str, Any] = {"val_fraction": val_fraction, "test_fraction": test_fraction}
    recipe = replace(recipe, **{name: share for name, share in given.items() if share is not None})
    for split, share in _shares(recipe).items():
        if share and ("train" not in recipe.splits or split in recipe.splits):
            raise UserError(f"{split} fraction {share:g}: {recipe.root} has several splits already; omit the option")
        if not 0 <= sum(_shares(recipe).values()) <= 1 or not share >= 0:
            raise UserError(f"{split} fraction {share:g}: must be from 0 to 1, also together with others")
    return recipe


def table_recipe(path: Path) -> Recipe:
    """The recipe of a table of pairs."""
    return Recipe(name="table", root=path.parent, splits={"train": Folders(table=path.name)})


def _shares(recipe: Recipe) -> dict[str, float]:
    """The shares of the training pairs that become those of other splits."""
    return {"val": recipe.val_fraction, "test": recipe.test_fraction}


def folder_recipe(root: Path, layout: LayoutName | None = None, direction: Direction = "AtoB") -> Recipe:
    """The recipe of a folder; also if all lies in one folder inside of it, as in many archives.

    Raises:
        NoLayout: the pairs lie in no layout.
        UserError: they may lie in several, or a folder has no partner.
    """
    try:
        name, splits = recognised(root, layout, direction)
    except NoLayout as e:
        found = []
        for inner in listing.sub_folders(root):
            with suppress(UserError):
                found.append((root / inner, *recognised(root / inner, layout, direction)))
        if len(found) != 1 or Folders(both=".") in found[0][2].values():
            raise e
        root, name, splits = found[0]
    labels = root / LABELS if (root / LABELS).is_file() else None
    known = "folder" if name == "folders" else name  # the name that manifests have had before there were others
    return Recipe(name=known, root=root, splits=splits, layout=name, direction=direction, labels=labels)


def _toml_recipe(path: Path, root: Path, direction: Direction | None) -> Recipe:
    values = read_toml(path)
    if "root" in values:
        raise UserError(f"{path}: there is no setting root; use --root")
    recipe = from_dict(Recipe, values, str(path))
    if direction is not None:
        recipe = replace(recipe, direction=direction)
    if not root.is_dir():
        raise UserError(f"{root}: --root is not a folder")
    if recipe.inside is not None and within(root, recipe.inside, str(path)).is_dir():
        root = root / recipe.inside
    if recipe.layout and recipe.splits:
        raise UserError(f"{path}: has a layout and splits, of which one is enough")
    if recipe.layout:
        recipe = replace(recipe, splits=recognised(root, recipe.layout, recipe.direction)[1])
    for name, folders in recipe.splits.items():
        if name not in SPLITS:
            raise UserError(f"{path}: splits.{name}: a split is one of {', '.join(SPLITS)}")
        if sum(map(bool, (folders.line or folders.sketch, folders.both, folders.table))) > 1:
            raise UserError(f"{path}: splits.{name}: needs line and sketch, or both, or table: only one of these")
        if folders.both or folders.table:
            continue
        if not folders.line or (name == "train" and not folders.sketch):
            raise UserError(f"{path}: splits.{name}: needs line and sketch, folders relative to the root")
    if not recipe.name or not recipe.splits:
        raise UserError(f"{path}: needs a name and at least one table [splits.train] with line and sketch folders")
    if recipe.direction != "AtoB" and not recipe.layout and not any(f.both for f in recipe.splits.values()):
        raise UserError(f"{path}: direction: its line and sketch folders say which side is which; remove it")
    for split, share in _shares(recipe).items():
        if share and ("train" not in recipe.splits or split in recipe.splits):
            raise UserError(f"{path}: {split}_fraction = {share:g}: is allowed only without [splits.{split}]")
    if not all(re.fullmatch(r"\.[^.A-Z]+", extension) for extension in recipe.extensions):
        raise UserError(f"{path}: extensions = {recipe.extensions}: must be lower-case endings such as '.jpg'")
    labels = None if recipe.labels is None else within(root, str(recipe.labels), str(path))
    splits = {name: recipe.splits[name] for name in SPLITS if name in recipe.splits}
    return replace(recipe, root=root, splits=splits, labels=labels)


def pairs(recipe: Recipe) -> tuple[list[FilePair], list[Problem]]:
    """Lists the pairs, split by split in natural order of their names (1, 2, 10), and the files that have no partner.

    Raises:
        UserError: a folder or table is missing, empty, or outside the root.
    """
    found: list[FilePair] = []
    problems: list[Problem] = []
    for split, folders in recipe.splits.items():
        if folders.table is not None:
            found += _of_table(recipe, split, folders.table, problems)
        elif folders.both is not None:
            halves: tuple[Half, Half] = ("left", "right") if recipe.direction == "AtoB" else ("right", "left")
            for name, file in _scan(recipe, folders.both, problems).items():
                if file is not None:
                    found.append(_pair(recipe, name, split, file, file, halves=halves))
        else:
            found += _of_folders(recipe, split, folders, problems)
    found.sort(key=lambda pair: SPLITS.index(pair.split))
    seen: dict[tuple[str, str], FilePair] = {}
    for pair in found:
        if (other := seen.setdefault((pair.split, pair.key), pair)) is not pair:
            raise UserError(
                f"{recipe.root}: {_relative(recipe, other.line)} and {_relative(recipe, pair.line)} would both be the "
                f"{pair.split} pair {pair.name}; rename one of them"
            )
    return found, problems


def _of_folders(recipe: Recipe, split: str, folders: Folders, problems: list[Problem]) -> list[FilePair]:
    found = []
    lines = _scan(recipe, folders.line, problems)
    sketches = None if folders.sketch is None else _scan(recipe, folders.sketch, problems)
    if sketches is None:
        return [_pair(recipe, name, split, file, None) for name, file in lines.items() if file is not None]
    partners = matched(lines, sketches)
    alone = set(sketches) - set(partners.values())
    for name in sorted({*lines, *alone}, key=natural):
        other = partners.get(name)
        if other is None:
            file, missing = (sketches[name], folders.line) if name in alone else (lines[name], folders.sketch)
            if file is not None:
                why = f"has no partner in {missing}: no image there is named {name}"
                problems.append(Problem(_relative(recipe, file), why))
        elif (line := lines[name]) is not None and (sketch := sketches[other]) is not None:
            found.append(_pair(recipe, name, split, line, sketch))
    return found


def _of_table(recipe: Recipe, split: str, file: str, problems: list[Problem]) -> list[FilePair]:
    """The pairs of a table, whose names are the shortest ends of the lines' paths that tell all of a split apart."""
    path = within(recipe.root, file, recipe.name)
    rows = tables.read(path).rows
    pictures = tables.Pictures(path, recipe.extensions)

    def picture(name: str, where: str) -> Path | None:
        found = pictures.find(name, where)
        if isinstance(found, str):
            problems.append(Problem(where, found))
            return None
        return found

    used: dict[str, list[tuple[tables.Row, Path, Path | None]]] = {}
    for row in rows:
        line = picture(row.line, row.where)
        sketch = picture(row.sketch, row.where) if row.sketch else None
        part = row.split or SPLIT_WORDS.get(next(iter(PurePath(row.line).parts), "").casefold()) or split
        if row.sketch is None and part == "train":
            problems.append(Problem(row.where, "has no sketch: training needs both"))
        elif line and (sketch or not row.sketch):
            used.setdefault(part, []).append((row, line, sketch))
    found = []
    if taken := [split for split, share in _shares(recipe).items() if share and split in used]:
        raise UserError(f"{taken[0]} fraction: {path} has several splits already; omit the option")
    for part, group in used.items():
        if len({sketch is None for _, _, sketch in group}) > 1:
            raise UserError(f"{path}: some {part} pairs have a sketch and others none: give it to all, or to none")
        paths = [line.relative_to(recipe.root).with_suffix("").parts for _, line, _ in group]
        for at, name, (row, line, sketch) in zip(paths, short(paths), group, strict=True):
            if name is None:
                problems.append(Problem(row.where, f"{row.line}: is there twice in {part}"))
            else:
                own = row.name or name
                found.append(_pair(recipe, "/".join(at), part, line, sketch, own, labels=row.labels))
    return sorted(found, key=lambda pair: natural(pair.name))


def _pair(
    recipe: Recipe, at: str, split: str, line: Path, sketch: Path | None, name: str = "", **more: Any
) -> FilePair:
    """A pair; what it is `at`, its name or path, decides whether it becomes a validation or a test pair."""
    place, part = fraction(at), split
    if split == "train":
        part = "val" if place < recipe.val_fraction else "test" if place >= 1 - recipe.test_fraction else split
    return FilePair(encode_key(name or at), name or line.stem, part, line, sketch, **more)


def _scan(recipe: Recipe, folder: str, problems: list[Problem]) -> dict[str, Path | None]:
    """Maps NFC stem -> path, or None for a file with a problem, so that its partner is not reported as well."""
    path = within(recipe.root, folder, recipe.name)
    by_name = listing.by_stem(listing.names_in(path), recipe.extensions)
    if not by_name:
        there = "".join(f"; passed over: {line}" for line in told(passed_over(recipe, folder)))
        endings = " ".join(sorted(recipe.extensions))
        raise UserError(f"{path}: the folder is empty: no file in it ends in {endings}{there}")
    result: dict[str, Path | None] = {}
    for name in sorted(by_name, key=natural):
        files = sorted(by_name[name])
        file = path / files[0]
        why = listing.refusal(files)
        if why is not None:
            problems.append(Problem(_relative(recipe, file), why))
        result[name] = file if why is None else None
    return result


def passed_over(recipe: Recipe, *folders: str) -> dict[str, dict[str, int]]:
    """What lies in the recipe's folders (or in these of them) and is not read: folder -> kind -> number of files.

    Raises:
        UserError: a folder cannot be read.
    """
    own = [folder for split in recipe.splits.values() for folder in split.own()]
    used = {os.path.normpath(recipe.root / folder) for folder in own}
    found = {f: listing.others(within(recipe.root, f, recipe.name), used, recipe.extensions) for f in folders or own}
    if not folders:
        for table in (split.table for split in recipe.splits.values() if split.table):
            if names := tables.read(within(recipe.root, table, recipe.name)).no_labels:
                found[table] = {f"columns that cannot be labels ({', '.join(names)})": len(names)}
    return {folder: counts for folder, counts in found.items() if counts}


def told(counts: dict[str, dict[str, int]]) -> list[str]:
    """What `passed_over` found as a line a folder."""
    lines = (f"{folder}: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}" for folder, kinds in counts.items())
    return list(map(one_line, lines))


def _relative(recipe: Recipe, path: Path) -> str:
    return printable(path.relative_to(recipe.root).as_posix())


def unusable(root: Path, problems: Sequence[Problem], advice: str = "") -> UserError:
    """The error that names the first files that cannot be used, and how many there are."""
    count = f"{len(problems)} file{'s' if len(problems) > 1 else ''}"
    lines = listed([f"{p.file}: {p.why}" for p in problems])
    return UserError(f"{root}: {count} cannot be used:{lines}\nrepair or remove them{advice}")


def listed(lines: Sequence[str]) -> str:
    """The first lines, each indented on a new line, and how many more there are."""
    more = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "".join(f"\n  {one_line(line)}" for line in [*lines[:LISTED], *more])
