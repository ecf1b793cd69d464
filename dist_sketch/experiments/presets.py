"""Presets of experiments: what is trained, in which tables and figures it is shown, and what is claimed of it.

The form of the file is explained at the top of launch/experiment-paper.toml.
"""

import dataclasses
import itertools
import math
import random
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import find_file, read_toml

PREFIX = "experiment-"  # of the files in launch/


OWN = ("data.shards", "train.seed", "track.group", "track.name")  # that the experiment sets itself


SCORES = ("ssim", "psnr", "l1", "fid_64", "fid_192", "fid_768", "fid_2048", "kid")  # of metrics.json


MEASURES = (
    *SCORES,
    "loss_g",
    "loss_d",
    "time",
    "memory",
    "sharpness",
    "specks",
    "variety",
    "ink_precision",
    "ink_recall",
)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method: a training, and which of its drawings count."""

    label: str = ""
    like: str = ""  # another row, whose settings these are added to, and whose config it takes
    config: str | None = None  # preset of this row's training in the place of the experiment's
    settings: dict[str, Any] = field(default_factory=dict)  # dotted key -> value, those of `like` included
    noise_removal: bool = False  # its scores and pictures are those of the denoised output, else of the raw one


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A table or a figure of the comparison page."""

    title: str
    form: Literal["table", "faces", "curves"] = "table"
    rows: list[str]
    head: str = "method"  # of a table's first column
    paper: dict[str, list[str]] = field(default_factory=dict)  # the paper's own column -> its figures, one a row
    scores: list[str] = field(default_factory=lambda: ["fid_2048", "kid", "ssim"])
    note: str = ""
    optional: bool = False  # trained and shown only where --only names it


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence that can be checked: how a measure changes from row to row, or where it lies."""

    says: str
    measure: str
    rows: list[str]
    expect: Literal["lower", "higher", "same", "below"]
    by: list[float] = field(default_factory=list)  # lower, higher: least and largest share of the change
    limit: float | None = None  # below: of the measure; same: of the difference


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A row for each combination of values, or for `sample` of them drawn at random."""

    values: dict[str, Any]
    method: Literal["grid", "random"] = "grid"
    sample: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Preset:
    """An experiment."""

    name: str
    title: str
    config: str | None  # preset of all its trainings, as `train --config` takes it
    seeds: int
    infer: dict[str, Any]  # options of all its inferences
    rows: dict[str, Method]
    parts: dict[str, Exhibit]
    claims: list[Claim]


@dataclass(frozen=True, kw_only=True)
class _File:
    title: str
    config: str | None = None
    seeds: int = 1
    infer: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    claims: list[Any] = field(default_factory=list)
    grid: dict[str, Any] = field(default_factory=dict)


def find(name: str) -> Path:
    """The file of an experiment: the user's own, or launch/experiment-NAME.toml.

    Raises:
        UserError: there is none.
    """
    if Path(name).suffix == ".toml" and Path(name).is_file():
        return Path(name)
    try:
        return find_file("launch", PREFIX + name)
    except UserError as e:
        home = find_file("launch", PREFIX + "paper").parent
        names = sorted(p.stem.removeprefix(PREFIX) for p in home.glob(f"{PREFIX}*.toml"))
        raise UserError(f"{name}: neither a .toml file nor an experiment in launch/ (there: {', '.join(names)})") from e


def load(name: str) -> Preset:
    """Reads and checks the experiment `name`.

    Raises:
        UserError: something in the file is unknown, missing or contradictory.
    """
    path = find(name)
    raw = _read(_File, read_toml(path), str(path))
    rows = {n: _read(Method, t, f"{path}: rows.{n}") for n, t in raw.rows.items()}
    rows = {
        n: dataclasses.replace(
            r,
            label=r.label or n,
            settings=_settings(n, rows, path),
            config=_beside(path, _config(r, rows) or raw.config),
        )
        for n, r in rows.items()
    }
    parts = {n: _read(Exhibit, t, f"{path}: parts.{n}") for n, t in raw.parts.items()}
    claims = [_read(Claim, t, f"{path}: claims {i}") for i, t in enumerate(raw.claims, 1)]
    if raw.grid:
        found = _expand(_read(Sweep, raw.grid, f"{path}: grid"), f"{path}: grid")
        rows |= {n: dataclasses.replace(r, config=_beside(path, raw.config)) for n, r in found.items()}
        parts.setdefault("grid", Exhibit(title=raw.title, rows=list(found), head="settings"))
    preset = Preset(
        name=path.stem.removeprefix(PREFIX),
        title=raw.title,
        config=_beside(path, raw.config),
        seeds=raw.seeds,
        infer=dict(_flat(raw.infer)),
        rows=rows,
        parts=parts,
        claims=claims,
    )
    _check(preset, path)
    return preset


def _beside(path: Path, name: str | None) -> str | None:
    """A TOML file that the preset names lies beside it; anything else is meant as `train --config` takes it."""
    beside = path.parent / name if name and name.endswith(".toml") else None
    return str(beside) if beside is not None and beside.is_file() else name


def _settings(name: str, rows: dict[str, Method], path: Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The dotted settings of a row after those of the row that it is like; checked against Config."""
    row, where = rows[name], f"{path}: rows.{name}"
    if row.like and (row.like not in rows or row.like in (*seen, name)):
        raise UserError(f"{where}.like = {row.like!r}: must be another row, and not in a circle")
    return (_settings(row.like, rows, path, (*seen, name)) if row.like else {}) | known(row.settings, where)


def _config(row: Method, rows: dict[str, Method]) -> str | None:
    """The row's own, or that of the row that it is like."""
    return row.config or (_config(rows[row.like], rows) if row.like else None)


def known(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Nested settings as dotted key -> value, of the types that Config has.

    Raises:
        UserError: there is no such setting, its value has another type, or the experiment sets it itself.
    """
    flat = dict(_flat(settings))
    values = dict(cfg.items(cfg.from_dict(Config, nested(flat), where)))
    for key in flat:
        if key in OWN:
            raise UserError(f"{where}: {key} is set by the experiment itself, a run each; leave it out")
    return {key.replace("-", "_"): values[key.replace("-", "_")] for key in flat}


def _flat(tree: dict[str, Any], prefix: str = "") -> typing.Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def _expand(grid: Sweep, where: str) -> dict[str, Method]:
    """The grid's rows, in the order of the file (the last setting changes fastest) or of the drawing."""
    values = dict(_flat(grid.values))
    for key, choices in values.items():
        if not isinstance(choices, list) or not choices or len(set(map(str, choices))) < len(choices):
            raise UserError(f"{where}.values: {key} = {choices!r}: must be a list of different values")
    every = list(itertools.product(*values.values()))
    if grid.method == "random":
        if not 1 <= grid.sample <= len(every):
            raise UserError(f"{where}.sample = {grid.sample}: must be from 1 to {len(every)}, all there are")
        every = random.Random(grid.seed).sample(every, grid.sample)
    elif grid.sample:
        raise UserError(f'{where}.sample = {grid.sample}: is only for method = "random"')
    rows = {}
    for choice in every:
        pairs = [(key.rpartition(".")[2], value) for key, value in zip(values, choice, strict=True)]
        name = "-".join(re.sub(r"[^A-Za-z0-9._]", "_", f"{key}_{value}") for key, value in pairs)
        settings = known(nested(dict(zip(values, choice, strict=True))), f"{where}.values")
        rows[name] = Method(label=", ".join(f"{key} {value}" for key, value in pairs), settings=settings)
    if len(rows) < len(every):
        raise UserError(f"{where}.values: two combinations would have the same name, {name}")
    return rows


def _check(preset: Preset, path: Path) -> None:
    if preset.seeds < 1:
        raise UserError(f"{path}: seeds = {preset.seeds}: must be at least 1")
    if not preset.parts:
        raise UserError(f"{path}: has neither [parts.NAME] (a table or figure) nor a [grid]")
    for name in (*preset.rows, *preset.parts):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"{path}: {name!r}: names are made of letters, digits, '.', '_' and '-'")
    for where, rows in [
        *((f"parts.{n}", p.rows) for n, p in preset.parts.items()),
        *((f"claims {i}", c.rows) for i, c in enumerate(preset.claims, 1)),
    ]:
        strange = [r for r in rows if r not in preset.rows]
        if strange or not rows:
            what = f"there is no row {strange[0]!r}" if strange else "rows is empty"
            raise UserError(f"{path}: {where}: {what} (rows: {', '.join(preset.rows)})")
    for name, part in preset.parts.items():
        for column, figures in part.paper.items():
            if len(figures) != len(part.rows):
                raise UserError(f"{path}: parts.{name}.paper: {column} needs {len(part.rows)} figures, one a row")
        for score in part.scores:
            if score not in SCORES:
                raise UserError(f"{path}: parts.{name}.scores: {score!r}: must be one of {', '.join(SCORES)}")
    for i, claim in enumerate(preset.claims, 1):
        _check_claim(claim, f"{path}: claims {i}")


def _check_claim(claim: Claim, where: str) -> None:
    if claim.measure not in MEASURES:
        raise UserError(f"{where}: measure = {claim.measure!r}: must be one of {', '.join(MEASURES)}")
    if (claim.limit is not None) != (claim.expect in ("below", "same")):
        raise UserError(f'{where}: limit belongs to expect = "below" and to "same", which need it')
    if (claim.expect == "below") != (len(claim.rows) == 1):
        raise UserError(f'{where}: {len(claim.rows)} row(s): "below" is about one, all else compares two or more')
    two = len(claim.by) == 2 and claim.by[0] <= claim.by[1] and len(claim.rows) == 2
    if claim.by and not (two and claim.expect in ("lower", "higher")):
        raise UserError(f'{where}: by = {claim.by}: [least, largest] share, of "lower" or "higher" between two rows')


T = typing.TypeVar("T")


def _read(cls: type[T], table: Any, where: str) -> T:
    """A flat dataclass from a TOML table, every value of the type that the field has."""
    if not isinstance(table, dict):
        raise UserError(f"{where}: must be a table, not {table!r}")
    hints = typing.get_type_hints(cls)
    for key, value in table.items():
        if key not in hints:
            raise UserError(f"{where}: there is no key {key}; known here: {', '.join(hints)}")
        if not _fits(value, hints[key]):
            raise UserError(f"{where}: {key} = {value!r}: must be {_words(hints[key])}")
    needed = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in table]  # type: ignore[arg-type]
    if needed:
        raise UserError(f"{where}: {needed[0]} is missing")
    return cls(**table)


def _required(field_: dataclasses.Field[Any]) -> bool:
    return field_.default is dataclasses.MISSING and field_.default_factory is dataclasses.MISSING


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin is types.UnionType:
        return any(_fits(value, a) for a in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(v, arguments[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, arguments[1]) for v in value.values())
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    return f"of type {hint.__name__ if isinstance(hint, type) else hint}"
