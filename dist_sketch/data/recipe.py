"""Where the pairs lie: folders -> pairs of files, matched by name; and the one door for image files."""

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from dist_sketch.core.config import from_dict
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import find_file, read_toml

SPLITS = ("train", "val", "test")


EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


_LISTED = 10  # problems named in one error


@dataclass(frozen=True, kw_only=True)
class Folders:
    """The two folders of a split, relative to the root; without `sketch` its lines have no partners."""

    line: str = ""
    sketch: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A data set on disk: which folders under `root` are lines and which are sketches, in each split."""

    name: str
    license: str
    description: str
    root: Path
    splits: dict[str, Folders]
    val_fraction: float = 0.0
    """Share of the pairs that go to `val`, by a stable hash of the name, where the folders give `train` alone."""
    extensions: tuple[str, ...] = EXTENSIONS
    """File name extensions (lower case) that are images; other files are not looked at."""


@dataclass(frozen=True, kw_only=True)
class _File:
    """The plain settings of a recipe's TOML file; its tables `splits.NAME` are read as `Folders`."""

    name: str = ""
    license: str = "not stated"
    description: str = ""
    inside: str | None = None
    val_fraction: float = 0.0
    splits: dict = field(default_factory=dict)
    extensions: list = field(default_factory=lambda: list(EXTENSIONS))


@dataclass(frozen=True)
class FilePair:
    """A line drawing and its sketch; `key` names it in shards, `name` is the file's stem."""

    key: str
    name: str
    split: str
    line: Path
    sketch: Path | None


@dataclass(frozen=True)
class Problem:
    """A file (relative to the root) that cannot be used, and why."""

    file: str
    why: str


def load(source: str, root: Path | None = None, val_fraction: float | None = None) -> Recipe:
    """Resolves what the user calls the source of the pairs.

    Args:
        source: a folder with train_line/ and train_sketch/ (val_*, test_* may be there), or, with `root`, the name of a
            recipe in shards/ or the path of a recipe's TOML file.
        root: the folder that a recipe's folders lie in.
        val_fraction: overrides the recipe's (a folder's is 0).

    Raises:
        UserError: no such source, a folder of it is missing or leaves the root, or the recipe is malformed.
    """
    if root is None and Path(source).is_dir():
        recipe = _folder_recipe(Path(source))
    else:
        try:
            path = find_file("shards", source)
        except UserError as e:
            hint = "is a folder: give it without --root" if Path(source).is_dir() else "is no folder either"
            raise UserError(f"{e}; it {hint}") from e
        if root is None:
            raise UserError(f"{source}: a recipe needs --root DIR, the folder that its images lie in")
        recipe = _toml_recipe(path, root)
    if val_fraction is not None:
        if val_fraction and set(recipe.splits) != {"train"}:
            raise UserError(f"val fraction {val_fraction:g}: {recipe.root} is split already; leave it away")
        recipe = replace(recipe, val_fraction=val_fraction)
    if not 0 <= recipe.val_fraction <= 1:
        raise UserError(f"val fraction {recipe.val_fraction:g}: must be from 0 to 1")
    return recipe


def _folder_recipe(root: Path, wanted: Sequence[str] = SPLITS) -> Recipe:
    splits = {}
    for split in SPLITS:
        line, sketch = root / f"{split}_line", root / f"{split}_sketch"
        if sketch.is_dir() and not line.is_dir():
            raise UserError(f"{root}: has {sketch.name} but no {line.name}: each sketch needs the line it belongs to")
        if line.is_dir() and split == "train" and not sketch.is_dir() and split in wanted:
            raise UserError(f"{root}: has {line.name} but no {sketch.name}: training needs both, paired by file name")
        if line.is_dir():
            splits[split] = Folders(line=line.name, sketch=sketch.name if sketch.is_dir() else None)
    if not splits:
        raise UserError(
            f"{root}: has no folder train_line (with train_sketch beside it); else give a recipe and --root"
        )
    return Recipe(name="folder", license="not stated", description="", root=root, splits=splits)


def _toml_recipe(path: Path, root: Path) -> Recipe:
    where = str(path)
    head = from_dict(_File, read_toml(path), where)
    if not root.is_dir():
        raise UserError(f"{root}: --root is not a folder")
    if head.inside is not None and _within(root, head.inside, where).is_dir():
        root = root / head.inside
    splits = {
        name: from_dict(Folders, head.splits[name], where, f"splits.{name}.") for name in SPLITS if name in head.splits
    }
    for name in head.splits:
        if name not in SPLITS:
            raise UserError(f"{where}: splits.{name}: a split is one of {', '.join(SPLITS)}")
    if not head.name or not splits:
        raise UserError(f"{where}: needs a name and at least one table [splits.train] with line and sketch folders")
    for name, folders in splits.items():
        if not folders.line or (name == "train" and not folders.sketch):
            raise UserError(f"{where}: splits.{name}: needs line and sketch, folders relative to the root")
    if head.val_fraction and set(splits) != {"train"}:
        raise UserError(f"{where}: val_fraction = {head.val_fraction:g}: only where [splits.train] stands alone")
    if not all(isinstance(e, str) and re.fullmatch(r"\.[^.A-Z]+", e) for e in head.extensions):
        raise UserError(f"{where}: extensions = {head.extensions}: a list of lower-case endings such as '.jpg'")
    return Recipe(
        name=head.name,
        license=head.license,
        description=head.description,
        root=root,
        splits=splits,
        val_fraction=head.val_fraction,
        extensions=tuple(head.extensions),
    )


def pairs(recipe: Recipe) -> tuple[list[FilePair], list[Problem]]:
    """Lists the pairs in natural order of their names (1, 2, 10), split by split, and what cannot be paired.

    Raises:
        UserError: a folder is missing, empty, or lies outside the root.
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
    """Maps NFC stem -> path, or None where a problem was noted (so that its partner is not blamed as well)."""
    path = _within(recipe.root, folder, recipe.name)
    by_name: dict[str, list[os.DirEntry[str]]] = defaultdict(list)
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                # names starting with a dot are file managers' own (.DS_Store, ._1.jpg)
                if PurePath(entry.name).suffix.lower() in recipe.extensions and (
                    entry.name[0] != "." or _climbs(entry.name)
                ):
                    # macOS archives decompose accents: the two halves of a pair may differ in that alone
                    by_name[unicodedata.normalize("NFC", PurePath(entry.name).stem)].append(entry)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); is the root right?") from e
    if not by_name:
        raise UserError(f"{path}: the folder is empty: no file in it ends in {' '.join(recipe.extensions)}")
    result: dict[str, Path | None] = {}
    for name in sorted(by_name, key=natural):
        files = sorted(by_name[name], key=lambda e: e.name)
        file = path / files[0].name
        why = _refusal(recipe, files)
        if why is not None:
            problems.append(Problem(_relative(recipe, file), why))
        result[name] = file if why is None else None
    return result


def _refusal(recipe: Recipe, files: list[os.DirEntry[str]]) -> str | None:
    if len(files) > 1:
        return f"has the same name as {', '.join(_printable(e.name) for e in files[1:])} beside it: keep one of them"
    (entry,) = files
    if _printable(entry.name) != entry.name:
        return "its name is not valid UTF-8: rename it"
    if _climbs(entry.name):
        return "its name leaves its folder: rename it"
    target = os.path.realpath(entry.path)
    if entry.is_symlink() and not Path(target).is_relative_to(os.path.realpath(recipe.root)):
        return f"leaves its folder: a link to {target}, outside {recipe.root}; copy the file instead"
    try:
        return None if entry.is_file() else "is a broken link" if entry.is_symlink() else "is not a file"
    except OSError as e:
        return f"cannot be read ({e.strerror})"


def _climbs(name: str) -> bool:
    return ".." in re.split(r"[/\\]", name)


def _within(root: Path, folder: str, where: str) -> Path:
    path = root / folder
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise UserError(f"{where}: the folder {folder} leaves the root {root}: copy it there, or name another root")
    return path


def _relative(recipe: Recipe, path: Path) -> str:
    return _printable(path.relative_to(recipe.root).as_posix())


def _printable(text: str) -> str:
    """`text` itself, or with escapes where a file name is no valid UTF-8 and could not be printed."""
    return text.encode("utf-8", "backslashreplace").decode()


def _fraction(name: str) -> float:
    """A number in [0, 1) that only the name decides, so that a pair keeps its split when the set grows."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort key that counts: 1, 2, 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))], name


def encode_key(name: str) -> str:
    """The sample's key: the NFC name, percent-encoded where WebDataset would cut it ('.', '/', control characters).

    `urllib.parse.unquote` gives the name back.
    """
    name = unicodedata.normalize("NFC", name)
    return re.sub(r"[./%\x00-\x1f\x7f-\x9f]", lambda m: "".join(f"%{b:02X}" for b in m[0].encode()), name)


def inputs(path: Path, split: str) -> list[FilePair]:
    """Lists what `infer` reads from outside shards, in natural order of names.

    Args:
        path: a folder in the layout of a source (its `split` is taken, with sketches if there), a folder of images
            (lines without sketches), or one image file.

    Raises:
        UserError: nothing there, the split is missing, or one of its files is refused.
    """
    if path.is_file():
        if _printable(path.name) != path.name:
            raise UserError(f"{_printable(str(path))}: its name is not valid UTF-8: rename it")
        return [FilePair(encode_key(path.stem), path.stem, split, path, None)]
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder or image")
    if any((path / f"{s}_line").is_dir() for s in SPLITS):
        recipe = _folder_recipe(path, wanted=())
        if split not in recipe.splits:
            raise UserError(f"{path}: has no split {split}; there: {', '.join(recipe.splits)} (choose with --split)")
        recipe = replace(recipe, splits={split: recipe.splits[split]})
    else:
        flat = Folders(line=".")
        recipe = Recipe(name="folder", license="not stated", description="", root=path, splits={split: flat})
    found, problems = pairs(recipe)
    refuse(path, problems)
    return found


def refuse(root: Path, problems: Sequence[Problem], skip_bad: int = 0, hint: str = "") -> None:
    """Raises a UserError that names the first problems and their number, if they are more than `skip_bad`."""
    if len(problems) <= skip_bad:
        return
    lines = [f"{root}: {len(problems)} file{'s' if len(problems) > 1 else ''} cannot be used:"]
    lines += [f"  {p.file}: {p.why}" for p in problems[:_LISTED]]
    if len(problems) > _LISTED:
        lines.append(f"  ... and {len(problems) - _LISTED} more")
    raise UserError("\n".join([*lines, f"mend or remove them{hint}"]))
