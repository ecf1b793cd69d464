"""Recipes: which folders hold the pairs of a data set, and how files in them are paired by name."""

import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import find_file, read_toml
from dist_sketch.core.toml_dataclass import from_dict
from dist_sketch.core.words import one_line

SPLITS = ("train", "val", "test")
EXTENSIONS = (
    *(".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm"),
)
LABELS = "annotations.json"  # in a folder of pairs
LISTED = 10  # problems that one error message names


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The two folders of a split, relative to the root; without `sketch` its lines have no partners."""

    line: str = ""
    sketch: str | None = None


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
    labels: Path | None = None
    """JSON file of the pairs' labels, relative to the root, as `data.labels` reads it."""
    val_fraction: float = 0.0
    """Share of the pairs that goes to `val`, by a stable hash of the name; only if `train` is the only split."""
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


@dataclass(frozen=True)
class Problem:
    """A file (relative to the root) that cannot be used, and why."""

    file: str
    why: str


def load(source: str, root: Path | None = None, val_fraction: float | None = None) -> Recipe:
    """Finds the recipe for what the user names as the source of the pairs.

    Args:
        source: a folder with train_line/ and train_sketch/ (and optionally val_*, test_*), or, with `root`, the name
            of a recipe in shards/ or the path of a recipe's TOML file.
        root: the folder that a recipe's folders are relative to.
        val_fraction: replaces the recipe's; for a folder the default is 0.

    Raises:
        UserError: no such source, one of its folders is missing or leaves the root, or the recipe is malformed.
    """
    if root is None and Path(source).is_dir():
        recipe = _folder_recipe(Path(source))
    else:
        try:
            path = find_file("shards", source)
        except UserError as e:
            hint = "is a folder: give it without --root" if Path(source).is_dir() else "is not a folder either"
            raise UserError(f"{e}; it {hint}") from e
        if root is None:
            raise UserError(f"{source}: a recipe needs --root DIR, the folder that contains its images")
        recipe = _toml_recipe(path, root)
    if val_fraction is not None:
        if val_fraction and set(recipe.splits) != {"train"}:
            raise UserError(f"val fraction {val_fraction:g}: {recipe.root} has several splits already; omit the option")
        recipe = replace(recipe, val_fraction=val_fraction)
    if not 0 <= recipe.val_fraction <= 1:
        raise UserError(f"val fraction {recipe.val_fraction:g}: must be from 0 to 1")
    return recipe


def _folder_recipe(root: Path, need_train_sketches: bool = True) -> Recipe:
    splits = {}
    for split in SPLITS:
        line, sketch = root / f"{split}_line", root / f"{split}_sketch"
        if sketch.is_dir() and not line.is_dir():
            raise UserError(f"{root}: has {sketch.name} but no {line.name}: each sketch needs the line it belongs to")
        if not line.is_dir():
            continue
        if split == "train" and need_train_sketches and not sketch.is_dir():
            raise UserError(f"{root}: has {line.name} but no {sketch.name}: training needs both, paired by file name")
        splits[split] = Folders(line=line.name, sketch=sketch.name if sketch.is_dir() else None)
    if not splits:
        raise UserError(f"{root}: has no folders train_line and train_sketch; for other names give a recipe and --root")
    labels = root / LABELS if (root / LABELS).is_file() else None
    return Recipe(name="folder", root=root, splits=splits, labels=labels)


def _toml_recipe(path: Path, root: Path) -> Recipe:
    values = read_toml(path)
    if "root" in values:
        raise UserError(f"{path}: there is no setting root; use --root")
    recipe = from_dict(Recipe, values, str(path))
    if not root.is_dir():
        raise UserError(f"{root}: --root is not a folder")
    if recipe.inside is not None and _within(root, recipe.inside, str(path)).is_dir():
        root = root / recipe.inside
    for name, folders in recipe.splits.items():
        if name not in SPLITS:
            raise UserError(f"{path}: splits.{name}: a split is one of {', '.join(SPLITS)}")
        if not folders.line or (name == "train" and not folders.sketch):
            raise UserError(f"{path}: splits.{name}: needs line and sketch, folders relative to the root")
    if not recipe.name or not recipe.splits:
        raise UserError(f"{path}: needs a name and at least one table [splits.train] with line and sketch folders")
    if recipe.val_fraction and set(recipe.splits) != {"train"}:
        raise UserError(f"{path}: val_fraction = {recipe.val_fraction:g}: is allowed only with [splits.train] alone")
    if not all(re.fullmatch(r"\.[^.A-Z]+", extension) for extension in recipe.extensions):
        raise UserError(f"{path}: extensions = {recipe.extensions}: must be lower-case endings such as '.jpg'")
    labels = None if recipe.labels is None else _within(root, str(recipe.labels), str(path))
    splits = {name: recipe.splits[name] for name in SPLITS if name in recipe.splits}
    return replace(recipe, root=root, splits=splits, labels=labels)


def pairs(recipe: Recipe) -> tuple[list[FilePair], list[Problem]]:
    """Lists the pairs, split by split in natural order of their names (1, 2, 10), and the files that have no partner.

    Raises:
        UserError: a folder is missing, empty, or outside the root.
    """
    found: list[FilePair] = []
    problems: list[Problem] = []
    for split, folders in recipe.splits.items():
        sides = [(f, _scan(recipe, f, problems)) for f in (folders.line, folders.sketch) if f is not None]
        for name in sorted(set().union(*(files for _, files in sides)), key=natural):
            files = [files.get(name) for _, files in sides]
            missing = [folder for folder, files in sides if name not in files]
            if missing and any(files):
                file = next(f for f in files if f is not None)
                why = f"has no partner in {missing[0]}: no image there is named {name}"
                problems.append(Problem(_relative(recipe, file), why))
            elif files[0] is not None and files[-1] is not None:
                part = "val" if _fraction(name) < recipe.val_fraction else split
                sketch = None if folders.sketch is None else files[1]
                found.append(FilePair(encode_key(name), files[0].stem, part, files[0], sketch))
    return found, problems


def _scan(recipe: Recipe, folder: str, problems: list[Problem]) -> dict[str, Path | None]:
    """Maps NFC stem -> path, or None for a file with a problem, so that its partner is not reported as well."""
    path = _within(recipe.root, folder, recipe.name)
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in _names(path):
        if _is_picture(recipe, name):
            # macOS archives decompose accents, so that the two names of a pair may differ only in that
            by_name[unicodedata.normalize("NFC", PurePath(name).stem)].append(name)
    if not by_name:
        there = "".join(f"; passed over: {line}" for line in told(passed_over(recipe, folder)))
        endings = " ".join(sorted(recipe.extensions))
        raise UserError(f"{path}: the folder is empty: no file in it ends in {endings}{there}")
    result: dict[str, Path | None] = {}
    for name in sorted(by_name, key=natural):
        files = sorted(by_name[name])
        file = path / files[0]
        why = _refusal(files)
        if why is not None:
            problems.append(Problem(_relative(recipe, file), why))
        result[name] = file if why is None else None
    return result


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); is the root right?") from e


def _is_picture(recipe: Recipe, name: str) -> bool:
    """Whether the name is that of a picture. Those that start with a dot belong to file managers (._1.jpg)."""
    return PurePath(name).suffix.lower() in recipe.extensions and (name[0] != "." or _climbs(name))


def passed_over(recipe: Recipe, *folders: str) -> dict[str, dict[str, int]]:
    """What lies in the recipe's folders (or in these of them) and is not read: folder -> kind -> number of files.

    Raises:
        UserError: a folder cannot be read.
    """
    own = [f for split in recipe.splits.values() for f in (split.line, split.sketch) if f is not None]
    used = {os.path.normpath(recipe.root / folder) for folder in own}
    found: dict[str, dict[str, int]] = {}
    for folder in folders or own:
        kinds: Counter[str] = Counter()
        for name in _names(path := _within(recipe.root, folder, recipe.name)):
            inner, extension = path / name, PurePath(name).suffix.lower()
            if inner.is_dir() and not _is_picture(recipe, name):
                if os.path.normpath(inner) not in used:
                    within = [file for _, _, files in os.walk(inner) for file in files]
                    kinds["pictures in sub-folders"] += sum(_is_picture(recipe, file) for file in within)
            elif not _is_picture(recipe, name):
                kinds["hidden files" if name[0] == "." else _printable(extension) or "without an extension"] += 1
        if counts := {kind: kinds[kind] for kind in sorted(kinds) if kinds[kind]}:
            found[folder] = counts
    return found


def told(counts: dict[str, dict[str, int]]) -> list[str]:
    """What `passed_over` found as a line a folder."""
    lines = (f"{folder}: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}" for folder, kinds in counts.items())
    return list(map(one_line, lines))


def _refusal(files: list[str]) -> str | None:
    """Why the files of one name cannot be used; None if they can, as far as their names tell."""
    if len(files) > 1:
        return f"has the same name as {', '.join(map(_printable, files[1:]))} beside it: keep one of them"
    if _printable(files[0]) != files[0]:
        return "its name is not valid UTF-8: rename it"
    return "its name leaves its folder: rename it" if _climbs(files[0]) else None


def _climbs(name: str) -> bool:
    return ".." in re.split(r"[/\\]", name)


def _within(root: Path, folder: str, where: str) -> Path:
    """A recipe's folder or file below the root. A link there is the user's own and is followed, wherever it leads."""
    if "\0" in folder:
        raise UserError(f"{where}: the path {folder!r} has a character that no name can have")
    if os.path.isabs(folder) or os.path.normpath(folder).split(os.sep)[0] == os.pardir:
        raise UserError(f"{where}: the path {folder} leaves the root {root}: link it there, or name another root")
    return root / folder


def _relative(recipe: Recipe, path: Path) -> str:
    return _printable(path.relative_to(recipe.root).as_posix())


def _printable(text: str) -> str:
    """`text` with escapes for bytes of a file name that are not valid UTF-8 and could not be printed."""
    return text.encode("utf-8", "backslashreplace").decode()


def _fraction(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, so that pairs keep their split when the data set grows."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort key that orders numbers by value: 1, 2, 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))], name


def encode_key(name: str) -> str:
    """The sample's key: the NFC name with '.', '/', '%' and control characters percent-encoded, as WebDataset needs it.

    `urllib.parse.unquote` gives the name back.
    """
    name = unicodedata.normalize("NFC", name)
    return re.sub(r"[./%\x00-\x1f\x7f-\x9f]", lambda m: "".join(f"%{b:02X}" for b in m[0].encode()), name)


def inputs(path: Path, split: str) -> list[FilePair | Problem]:
    """Lists the image files that `infer` draws, in natural order of names; at the end those that cannot be used.

    Args:
        path: one image file, or a folder as `input_recipe` takes it.
        split: the split of the folder.

    Raises:
        UserError: nothing that can be used is there, or the split is missing.
    """
    if path.is_file():
        if _printable(path.name) != path.name:
            raise UserError(f"{_printable(str(path))}: its name is not valid UTF-8: rename it")
        return [FilePair(encode_key(path.stem), path.stem, split, path, None)]
    found, problems = pairs(input_recipe(path, split))
    if not found:
        raise unusable(path, problems)
    return [*found, *problems]


def input_recipe(path: Path, split: str) -> Recipe:
    """The recipe of a folder that `infer` draws.

    Args:
        path: a folder with train_line/, val_line/ ... (its `split` is taken, with sketches if there are any), or a
            folder of images (lines without sketches).

    Raises:
        UserError: nothing is there, or the split is missing.
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder or image")
    if any((path / f"{s}_line").is_dir() for s in SPLITS):
        recipe = _folder_recipe(path, need_train_sketches=False)
        if split not in recipe.splits:
            raise UserError(f"{path}: has no split {split}; it has {', '.join(recipe.splits)} (choose with --split)")
        return replace(recipe, splits={split: recipe.splits[split]})
    return Recipe(name="folder", root=path, splits={split: Folders(line=".")})


def unusable(root: Path, problems: Sequence[Problem], advice: str = "") -> UserError:
    """The error that names the first files that cannot be used, and how many there are."""
    count = f"{len(problems)} file{'s' if len(problems) > 1 else ''}"
    lines = listed([f"{p.file}: {p.why}" for p in problems])
    return UserError(f"{root}: {count} cannot be used:{lines}\nrepair or remove them{advice}")


def listed(lines: Sequence[str]) -> str:
    """The first lines, each indented on a new line, and how many more there are."""
    more = [f"... and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "".join(f"\n  {one_line(line)}" for line in [*lines[:LISTED], *more])
