"""Pairs that a file names, one a row: CSV, JSON Lines, metadata of Hugging Face's `datasets`, FS2K's annotations."""

import csv
import io
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import LARGE, parse_json, read_regular
from dist_sketch.core.labels import MOST_LABELS, Labels
from dist_sketch.core.toml_dataclass import checked
from dist_sketch.data.layouts import LINES, SKETCHES, SPLIT_WORDS
from dist_sketch.data.listing import by_stem, names_in, refusal, within
from dist_sketch.data.names import nfc

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
END = re.compile(r"(?:[-_ ]?(?:image|img))?(?:[-_ ]?(?:file[-_ ]?name|filename|file|path))?$")
FORM = "its rows need a line and a sketch, and may have a split and labels (shards/README.md)"


@dataclass(frozen=True)
class Row:
    """A pair as the file names it: its pictures relative to the file's folder."""

    where: str
    line: str
    sketch: str | None
    split: str | None
    labels: dict[str, Any]
    name: str | None = None
    """Of the pair, if the table has one; else it is the shortest end of the line's path that no other pair has."""


class Table(NamedTuple):
    """The rows, and the columns that cannot be labels, such as lists and long texts."""

    rows: list[Row]
    no_labels: list[str]


def is_table(path: Path) -> bool:
    """Whether a path is that of a table, by its name."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def read(path: Path) -> Table:
    """Reads a table.

    Columns: `line` (also photo, input, conditioning_image ...), `sketch` (also drawing, target ...), each also as
    Hugging Face writes it, `line_file_name`; the column `file_name` is the side that no other column is. `split` (also
    validation, training ...) may be left out. All other columns are labels, if all their values can be: numbers, true,
    false, texts of up to 100 characters, nothing.

    Raises:
        UserError: it cannot be read, or has other columns.
    """
    try:
        text = read_regular(path, LARGE).decode("utf-8-sig")
        rows = _csv(text, path) if path.suffix.lower() in (".csv", ".tsv") else _json(text)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except (ValueError, csv.Error) as e:
        raise UserError(f"{path}: is not a table ({e}); {FORM}") from e
    if not rows:
        raise UserError(f"{path}: has no rows; {FORM}")
    columns = dict.fromkeys(name for _, row in rows for name in row)
    if "image_name" in columns and path.name.startswith("anno_"):
        return _fs2k(rows, path)
    line, sketch, split = _sides(list(columns), path)
    other = [name for name in columns if name not in (line, sketch, split)]
    labels = _labels([row for _, row in rows], other, path)
    found = [
        Row(
            f"{path.name}, row {number}",
            _path(row.get(line), f"{path}, row {number}: {line}"),
            _path(row[sketch], f"{path}, row {number}: {sketch}") if sketch and row.get(sketch) else None,
            _split(row.get(split), f"{path}, row {number}") if split else None,
            {name: column[place] for name, column in labels.items() if column[place] is not None},
        )
        for place, (number, row) in enumerate(rows)
    ]
    return Table(found, [name for name in other if name not in labels])


class Pictures:
    """Finds the pictures that a table names, relative to its folder."""

    def __init__(self, table: Path, extensions: Collection[str]):
        self._table, self._extensions = table, extensions
        self._listed: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str, where: str) -> Path | str:
        """The picture, also if its extension is left out or accents are written otherwise; else why there is none.

        Args:
            where: the row, for error messages.

        Raises:
            UserError: the path leaves the folder.
        """
        path = within(self._table.parent, name, f"{self._table}, {where}")
        folder, ending = path.parent, path.suffix.lower() in self._extensions
        if folder not in self._listed:
            self._listed[folder] = by_stem(names_in(folder) if folder.is_dir() else [], self._extensions)
        files = self._listed[folder].get(nfc(path.stem if ending else path.name), [])
        if ending:
            files = [file for file in files if PurePath(file).suffix == path.suffix]
        if not files:
            return f"{name}: there is no such picture"
        if why := refusal(files):
            return f"{name}: {why}"
        return folder / files[0]


def _csv(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    head = text.split("\n", 1)[0]
    between = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)  # some table programs write ";"
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"row {reader.line_num} has not as many cells as the first row")
        rows.append((reader.line_num, row))
    return rows


def _json(text: str) -> list[tuple[int, dict[str, Any]]]:
    """A list, or a table on each line."""
    if text.lstrip().startswith("["):
        found = list(enumerate(parse_json(text), 1))
    else:
        found = [(i, _row(line, i)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, row in found:
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is not {{column: value}}")
    return found


def _row(line: str, number: int) -> Any:
    try:
        return parse_json(line)
    except ValueError as e:
        raise ValueError(f"row {number}: {e}") from e


def _sides(columns: list[str], path: Path) -> tuple[str, str | None, str | None]:
    """The names of the columns of lines, sketches and splits."""
    words = {name: END.sub("", name.strip().casefold()) for name in columns}
    lines, sketches, rest = (
        [name for name, word in words.items() if word == sure] or [name for name, word in words.items() if word in more]
        for sure, more in (("line", (*LINES, "a", "conditioning")), ("sketch", (*SKETCHES, "b", "output")), ("", ()))
    )  # the rest is file_name or image, which is the other side
    for found, other in ((lines, sketches), (sketches, lines)):
        if not found and len(rest) == 1 and other:
            found += rest
    splits = [name for name in columns if name.strip().casefold() == "split"]
    if len(lines) != 1 or len(sketches) > 1 or len(splits) > 1:
        raise UserError(f"{path}: of its columns {', '.join(columns)}, none or several could be a side; {FORM}")
    return lines[0], sketches[0] if sketches else None, splits[0] if splits else None


def _path(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: must be the path of a picture")
    return value.strip()


def _split(value: Any, where: str) -> str | None:
    if value in (None, ""):
        return None
    if (split := SPLIT_WORDS.get(str(value).strip().casefold())) is None:
        raise UserError(f"{where}: split {value!r}: must be train, val or test")
    return split


def _labels(rows: list[dict[str, Any]], names: list[str], path: Path) -> dict[str, list[Any]]:
    """Label -> a value for each row, of the columns that can be labels."""
    found: dict[str, list[Any]] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if path.suffix.lower() in (".csv", ".tsv"):
            values = _typed(values)
        try:
            found |= checked(Labels, {name: values}, str(path))
        except UserError:
            continue
    if len(found) > MOST_LABELS:
        raise UserError(f"{path}: has {len(found)} columns of labels, and {MOST_LABELS} can be kept; remove the others")
    return found


def _typed(cells: list[Any]) -> list[Any]:
    """The cells of a column of CSV as numbers, or as true and false, if all of them are; empty ones are None."""
    texts = {cell.strip() for cell in cells} - {""}
    kinds: tuple[tuple[str, Any], ...] = (
        (r"[-+]?(0|[1-9][0-9]{0,17})", int),  # not 007, which is a name
        (r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,2})?", float),
        (r"(?i)true|false", lambda text: text.casefold() == "true"),
    )
    kind = next((kind for form, kind in kinds if all(re.fullmatch(form, text) for text in texts)), str)
    return [kind(cell.strip()) if cell.strip() else None for cell in cells]


def _fs2k(rows: list[tuple[int, dict[str, Any]]], path: Path) -> Table:
    """anno_train.json: image_name photo1/image0001 is photo/photo1/image0001 and sketch/sketch1/sketch0001."""
    split = SPLIT_WORDS.get(path.stem.removeprefix("anno_"))
    names = [_path(row.get("image_name"), f"{path}, row {number}: image_name") for number, row in rows]
    other = list(dict.fromkeys(name for _, row in rows for name in row if name != "image_name"))
    labels = _labels([row for _, row in rows], other, path)
    found = [
        Row(
            f"{path.name}, {name}",
            f"photo/{name}",
            f"sketch/{name.replace('photo', 'sketch').replace('image', 'sketch')}",
            split,
            {label: column[place] for label, column in labels.items() if column[place] is not None},
            name.replace("/", "_"),
        )
        for place, name in enumerate(names)
    ]
    return Table(found, [name for name in other if name not in labels])
