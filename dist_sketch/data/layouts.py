"""How people's data sets lie on disk: one table of layouts, of which each knows its folders when it sees them."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from dist_sketch.core.errors import UserError
from dist_sketch.data.listing import has_pictures, is_picture, names_in, sub_folders

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LINES = ("line", "lines", "photo", "photos", "input", "inputs", "edge", "edges")
SKETCHES = ("sketch", "sketches", "drawing", "drawings", "target", "targets")
WIDE = 1.2  # pages of portraits are at most so much wider than high; two of them side by side are wider
OTHERS = "for other names write a recipe, or a table of the pairs (shards/README.md)"
PARQUET = "Parquet files are not read: write their pictures into folders first, as shards/README.md shows"
RECIPE = "say which in a recipe (shards/README.md)"
TRIED = 10  # pictures of which one must be readable

Direction = Literal["AtoB", "BtoA"]
LayoutName = Literal["folders", "metadata", "fs2k", "named", "A-B", "aligned"]


class NoLayout(UserError):
    """The pairs of a folder lie in no layout."""


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where the pairs of a split are, relative to the root: in `line` and `sketch`, or in `both`, or in `table`."""

    line: str = ""
    sketch: str | None = None
    """Without it the lines have no partners."""
    both: str | None = None
    """Folder of pictures that show the line and its sketch side by side."""
    table: str | None = None
    """File that names the pictures of each pair, as `data.tables` reads it."""

    def own(self, *, with_table: bool = False) -> list[str]:
        """The folders whose pictures are read, and the table if it is asked for."""
        return [place for place in (self.line, self.sketch, self.both, self.table if with_table else None) if place]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A way to lay out pairs; `find` gives the splits of a root, or none if the pairs do not lie so."""

    name: LayoutName
    looked_for: str
    find: Callable[[Path], dict[str, Folders]]
    turns: bool = False
    """Whether the user's direction says which of the sides A and B are the lines; else names say so."""
    stated: bool = False
    """Whether names or a file that nobody has by chance say that it is this one, so that no other is looked for."""


def own_folders(root: Path, need_train_sketches: bool = True) -> dict[str, Folders]:
    """The layout of this project: train_line/, train_sketch/, val_line/ ...

    Raises:
        UserError: a folder has no partner.
    """
    if not any((root / f"{split}_line").is_dir() for split in SPLITS):
        return {}
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
    return splits


def _metadata(root: Path) -> dict[str, Folders]:
    """An image folder of Hugging Face's `datasets`: a file of metadata in the root, or one in each split's folder."""
    files = ("metadata.csv", "metadata.jsonl")
    for file in files:
        if (root / file).is_file():
            return {"train": Folders(table=file)}
    folders = _of_splits(root, lambda folder: any((folder / file).is_file() for file in files))
    first = {folder: next(file for file in files if (root / folder / file).is_file()) for folder in folders.values()}
    return {split: Folders(table=f"{folder}/{first[folder]}") for split, folder in folders.items()}


def _of_splits(root: Path, holds: Callable[[Path], bool]) -> dict[str, str]:
    """The folders named as splits that hold something; raises UserError if a split has two, as val/ and valid/."""
    found: dict[str, str] = {}
    for folder in sub_folders(root):
        split = SPLIT_WORDS.get(folder.casefold())
        if split is None or not holds(root / folder):
            continue
        if (other := found.setdefault(split, folder)) != folder:
            raise UserError(f"{root}: {other} and {folder} could both be {split}: {RECIPE}")
    return found


def _fs2k(root: Path) -> dict[str, Folders]:
    files = {split: f"anno_{split}.json" for split in SPLITS}
    return {split: Folders(table=file) for split, file in files.items() if (root / file).is_file()}


def _two_folders(root: Path, first: tuple[str, ...], second: tuple[str, ...]) -> dict[str, Folders]:
    """Two folders of these names, as line/; or with a split: line/train/, train/line/, train_line/ or trainline/."""
    top = sub_folders(root)
    found: dict[str, dict[bool, list[str]]] = defaultdict(lambda: defaultdict(list))
    outer = [folder for folder in top if folder.casefold() in (*SPLIT_WORDS, *first, *second)]
    for folder in (*top, *(f"{place}/{inner}" for place in outer for inner in sub_folders(root / place))):
        role = _role(folder, first, second)
        if role and has_pictures(root / folder):
            found[role[0]][role[1]].append(folder)
    if not any(len(sides) == 2 for sides in found.values()):
        return {}
    splits = {}
    for split in SPLITS:
        if split not in found:
            continue
        lines, sketches = found[split][False], found[split][True]
        for folders in (lines, sketches):
            if len(folders) > 1:
                raise UserError(f"{root}: {' and '.join(folders)} could both be a side of {split}: {RECIPE}")
        if not lines or (split == "train" and not sketches):
            raise UserError(f"{root}: {split} has only {(lines + sketches)[0]}: its partner is missing")
        splits[split] = Folders(line=lines[0], sketch=sketches[0] if sketches else None)
    return splits


def _role(folder: str, first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, bool] | None:
    """The split that a folder's path names, and whether it is the second side; None: it names no side."""
    splits, sides = "|".join(SPLIT_WORDS), "|".join(first + second)
    either = rf"(?:(?P<split>{splits})(?:[-_/]?(?P<side>{sides}))|(?P<side2>{sides})(?:[-_/]?(?P<split2>{splits}))?)"
    if not (role := re.fullmatch(either, folder.casefold())):
        return None
    split, side = role["split"] or role["split2"], role["side"] or role["side2"]
    return SPLIT_WORDS.get(split, "train"), side in second


def _aligned(root: Path) -> dict[str, Folders]:
    """pix2pix's pictures of two halves, in folders of splits or in the root itself, if a picture is so wide."""
    splits = {split: Folders(both=folder) for split, folder in _of_splits(root, has_pictures).items()}
    if not splits and has_pictures(root):
        splits = {"train": Folders(both=".")}
    return splits if all(_is_wide(root / str(folders.both)) for folders in splits.values()) else {}


def _is_wide(folder: Path) -> bool:
    """Whether the first readable picture is as wide as two portraits."""
    # Only where it is needed: it imports numpy, and `pack --help` needs the names of the layouts
    from dist_sketch.data.image_files import BadImage, read_image

    for name in sorted(filter(is_picture, names_in(folder)))[:TRIED]:
        try:
            width, height = read_image(folder / name).size
        except BadImage:
            continue
        return width >= WIDE * height
    return False


LAYOUTS = (
    Layout(
        name="folders",
        looked_for="train_line/ and train_sketch/ (and val_*, test_*)",
        find=own_folders,
        stated=True,
    ),
    Layout(
        name="metadata",
        looked_for="metadata.csv or metadata.jsonl in the folder or in its train/, validation/, test/",
        find=_metadata,
        stated=True,
    ),
    Layout(
        name="fs2k",
        looked_for="FS2K's anno_train.json beside photo/ and sketch/",
        find=_fs2k,
        stated=True,
    ),
    Layout(
        name="named",
        looked_for="two folders as line/ and sketch/, photos/ and sketches/ (also in or around train/, val/, test/)",
        find=partial(_two_folders, first=LINES, second=SKETCHES),
    ),
    Layout(
        name="A-B",
        looked_for="A/ and B/ (also in or around train/, val/, test/), or trainA/ and trainB/",
        find=partial(_two_folders, first=("a",), second=("b",)),
        turns=True,
    ),
    Layout(
        name="aligned",
        looked_for="wide pictures of two halves, line and sketch, in train/, val/, test/ or in the folder itself",
        find=_aligned,
        turns=True,
    ),
)


def turns(name: str | None) -> bool:
    """Whether the direction says which side are the lines in the layout of this name."""
    return any(layout.turns for layout in LAYOUTS if layout.name == name)


def recognised(root: Path, name: LayoutName | None, direction: Direction) -> tuple[LayoutName, dict[str, Folders]]:
    """The name of the layout in which the pairs below `root` lie, and their splits.

    Args:
        name: the layout that it must be; None: the only one that fits.
        direction: AtoB: of the sides A and B, or left and right, the first are the lines.

    Raises:
        NoLayout: none fits; the message says what was looked for.
        UserError: more than one fits, or a folder has no partner.
    """
    fits: dict[LayoutName, dict[str, Folders]] = {}
    looked = [layout for layout in LAYOUTS if name in (None, layout.name)]
    for layout in looked:
        if splits := layout.find(root):
            fits[layout.name] = splits
            if layout.stated:
                break
    if not fits:
        lines = "".join(f"\n  {layout.name}: {layout.looked_for}" for layout in looked)
        parquet = any(root.glob("*.parquet")) or any(root.glob("data/*.parquet"))
        raise NoLayout(
            f"{root}: its pairs lie in no known layout; looked for:{lines}\n{PARQUET if parquet else OTHERS}"
        )
    if len(fits) > 1:
        raise UserError(f"{root}: the pairs may lie as {' or as '.join(fits)}; choose with --layout NAME")
    found, splits = next(iter(fits.items()))
    if direction == "BtoA" and not turns(found):
        raise UserError(f"--direction BtoA: in the layout {found} names say which side is which; omit it")
    if direction == "BtoA":
        splits = {split: _turned(root, folders) for split, folders in splits.items()}
    return found, {split: splits[split] for split in SPLITS if split in splits}


def _turned(root: Path, folders: Folders) -> Folders:
    if folders.both:
        return folders  # the halves are turned when they are cut
    if not folders.sketch:
        raise UserError(f"{root}: {folders.line} has no partner, so that BtoA leaves no lines; remove it")
    return Folders(line=folders.sketch, sketch=folders.line)
