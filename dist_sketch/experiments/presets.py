"""Presets of experiments: what is trained, in which tables and figures it is shown, and what is claimed about it.

The form of the file is explained at the top of launch/experiment-paper.toml.
"""

import itertools
import math
import random
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dist_sketch.core import config as cfg
from dist_sketch.core import toml_dataclass
from dist_sketch.core.config import Config
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import find_file, flat, read_toml
from dist_sketch.metrics.definitions import METRICS

PREFIX = "experiment-"  # of the files in launch/
OWN = ("data.shards", "train.seed", "track.group", "track.name")  # settings that the experiment itself sets
MOST_TRAININGS = 10_000  # of an experiment: its plan is laid out within a minute, and its page can still be read

SCORES = {m.key: m for m in METRICS}  # of metrics.json
MEASURES = {m.key: (m.label, m.digits) for m in METRICS} | {  # label, digits that are shown
    "loss_g": ("Loss_G at the end", 3),
    "loss_d": ("Loss_D at the end", 3),
    "time": ("milliseconds per image", 1),
    "memory": ("peak memory in MB", 0),
    "sharpness": ("sharpness (real sketches: 1)", 2),
    "noise_pixels": ("single dark pixels, ‰", 2),
    "ink_precision": ("share of the drawn ink within 1 px of real ink", 3),
    "ink_recall": ("share of the real ink within 1 px of drawn ink", 3),
    "variety": ("distance between the drawings of two people (real sketches: 1)", 2),
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """[rows.NAME]: a training, and which of its drawings count."""

    label: str = ""
    like: str = ""  # another row: these settings are added to its settings, and its config is the default
    config: str | None = None  # preset of this row's training; default: the experiment's
    settings: dict[str, Any] = field(
        default_factory=dict
    )  # after `load`: dotted key -> value, those of `like` included
    noise_removal: bool = False  # scores and pictures are those of the denoised drawings, not of the raw ones


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """[parts.NAME]: a table or a figure of the comparison page."""

    title: str
    form: Literal["table", "faces", "curves"] = "table"
    rows: list[str]
    head: str = "method"  # of a table's first column
    paper: dict[str, list[str]] = field(default_factory=dict)  # column of the paper -> its values, one for each row
    scores: list[str] = field(default_factory=lambda: ["fid_2048", "kid", "ssim"])
    note: str = ""
    optional: bool = False  # trained and shown only if --only names it


@dataclass(frozen=True, kw_only=True)
class Claim:
    """[[claims]]: a sentence that can be checked: how a measure changes from row to row, or below which limit it is."""

    says: str
    measure: str
    rows: list[str]
    expect: Literal["lower", "higher", "same", "below"]
    by: list[float] = field(default_factory=list)  # lower, higher: least and largest change, as a share
    limit: float | None = None  # below: of the measure; same: of the difference


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """[grid]: a row for each combination of values, or for `sample` of them drawn at random."""

    values: dict[str, Any]
    method: Literal["grid", "random"] = "grid"
    sample: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Preset:
    """An experiment."""

    name: str
    title: str
    config: str | None = None  # preset of all its trainings, as `train --config` takes it
    seeds: int = 1
    infer: dict[str, Any] = field(default_factory=dict)  # options of all its inferences
    rows: dict[str, Method] = field(default_factory=dict)
    parts: dict[str, Exhibit] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    grid: Sweep | None = None


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
    values = {"name": path.stem.removeprefix(PREFIX), **read_toml(path)}
    preset = toml_dataclass.from_dict(Preset, values, str(path))
    config = _beside(path, preset.config)
    rows = _inherit(preset.rows, path)
    parts = dict(preset.parts)
    if preset.grid:
        combinations = _expand(preset.grid, f"{path}: grid")
        parts.setdefault("grid", Exhibit(title=preset.title, rows=list(combinations), head="settings"))
        rows |= combinations
    rows = {n: replace(r, label=r.label or n, config=_beside(path, r.config) or config) for n, r in rows.items()}
    preset = replace(preset, config=config, infer=_flat(preset.infer, f"{path}: infer"), rows=rows, parts=parts)
    _check(preset, path)
    return preset


def _beside(path: Path, name: str | None) -> str | None:
    """A TOML file that the preset names may lie beside it; other names are those of `train --config`."""
    beside = path.parent / name if name and name.endswith(".toml") else None
    return str(beside) if beside is not None and beside.is_file() else name


def _inherit(rows: dict[str, Method], path: Path) -> dict[str, Method]:
    """The rows with the settings and the config of the rows that they are like."""
    done: dict[str, Method] = {}
    for name in rows:
        chain = {name: None}  # from this row to one that is done, or is like no other; in order
        while (like := rows[last := next(reversed(chain))].like) and like not in done:
            if like not in rows or like in chain:
                raise UserError(f"{path}: rows.{last}.like = {like!r}: must be another row, without a circle")
            chain[like] = None
        for link in reversed(chain):
            row = rows[link]
            parent = done.get(row.like, Method())
            settings = parent.settings | check_settings(row.settings, f"{path}: rows.{link}")
            done[link] = replace(row, settings=settings, config=row.config or parent.config)
    return {name: done[name] for name in rows}


def check_settings(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Nested settings as dotted key -> value, with the types of Config.

    Raises:
        UserError: there is no such setting, its value has another type, or the experiment itself sets it.
    """
    keys = [key.replace("-", "_") for key, _ in flat(settings)]
    values = dict(cfg.items(cfg.from_dict(Config, nested(flat(settings), where), where)))
    for key in keys:
        if key in OWN:
            raise UserError(f"{where}: {key} is set by the experiment itself, for each run; leave it out")
    return {key: values[key] for key in keys}


def nested(settings: Iterable[tuple[str, Any]], where: str) -> dict[str, Any]:
    """("a.b", 1) -> {"a": {"b": 1}}.

    Raises:
        UserError: a key is there twice, or is also a part of another one.
    """
    tree: dict[str, Any] = {}
    for key, value in settings:
        *path, last = key.split(".")
        place: Any = tree
        for part in path:
            place = place.setdefault(part, {}) if isinstance(place, dict) else place
        if not isinstance(place, dict) or last in place:
            raise UserError(f"{where}: {key!r} is there twice, or is both a value and a table of settings")
        place[last] = value
    return tree


def _flat(tree: dict[str, Any], where: str) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, in the order of the file; a key that is there twice is refused."""
    nested(flat(tree), where)
    return dict(flat(tree))


def _expand(grid: Sweep, where: str) -> dict[str, Method]:
    """The rows of a grid, in the order of the file (the last setting changes fastest), or in random order."""
    values = _flat(grid.values, f"{where}.values")
    for key, choices in values.items():
        if not isinstance(choices, list) or not choices or len(set(map(str, choices))) < len(choices):
            raise UserError(f"{where}.values: {key} = {choices!r}: must be a list of different values")
        check_settings({key: choices[0]}, f"{where}.values")
    count = math.prod(map(len, values.values()))
    if grid.method == "random":
        most = min(count, MOST_TRAININGS)
        if not 1 <= grid.sample <= most:
            raise UserError(f"{where}.sample = {grid.sample}: must be from 1 to {most}; there are {count} combinations")
        if count > sys.maxsize:
            raise UserError(f"{where}.values: {count} combinations are too many; fix some of these settings")
        # Drawn as numbers: nobody could keep a list of all combinations.
        numbers = random.Random(grid.seed).sample(range(count), grid.sample)
        combinations = [_combination(values, number) for number in numbers]
    elif grid.sample:
        raise UserError(f'{where}.sample = {grid.sample}: is only for method = "random"')
    elif count > MOST_TRAININGS:
        raise UserError(
            f"{where}.values: {count} combinations, but an experiment has at most {MOST_TRAININGS:,} trainings; use "
            'method = "random" with a sample, or fewer values'
        )
    else:
        combinations = list(itertools.product(*values.values()))
    rows = {}
    for combination in combinations:
        pairs = [(key.rpartition(".")[2], value) for key, value in zip(values, combination, strict=True)]
        name = "-".join(re.sub(r"[^A-Za-z0-9._]", "_", f"{key}_{value}") for key, value in pairs)
        settings = check_settings(dict(zip(values, combination, strict=True)), f"{where}.values")
        rows[name] = Method(label=", ".join(f"{key} {value}" for key, value in pairs), settings=settings)
    if len(rows) < len(combinations):
        raise UserError(f"{where}.values: two combinations would have the same name, {name}")
    return rows


def _combination(values: dict[str, list[Any]], number: int) -> tuple[Any, ...]:
    """The combination of this number in the order of `itertools.product`."""
    found = []
    for choices in reversed(values.values()):
        number, place = divmod(number, len(choices))
        found.append(choices[place])
    return tuple(reversed(found))


def _check(preset: Preset, path: Path) -> None:
    if preset.seeds < 1:
        raise UserError(f"{path}: seeds = {preset.seeds}: must be at least 1")
    if not preset.parts:
        raise UserError(f"{path}: has neither [parts.NAME] (a table or figure) nor a [grid]")
    for name in (*preset.rows, *preset.parts):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UserError(f"{path}: {name!r}: names are made of letters, digits, '.', '_' and '-'")
    for name, part in preset.parts.items():
        _check_rows(preset, part.rows, f"{path}: parts.{name}")
        for column, values in part.paper.items():
            if len(values) != len(part.rows):
                raise UserError(f"{path}: parts.{name}.paper: {column} needs {len(part.rows)} values, one for each row")
        for score in part.scores:
            if score not in SCORES:
                raise UserError(f"{path}: parts.{name}.scores: {score!r}: must be one of {', '.join(SCORES)}")
    for i, claim in enumerate(preset.claims):
        _check_rows(preset, claim.rows, f"{path}: claims[{i}]")
        _check_claim(claim, f"{path}: claims[{i}]")


def _check_rows(preset: Preset, rows: list[str], where: str) -> None:
    unknown = [row for row in rows if row not in preset.rows]
    if unknown or not rows:
        what = f"there is no row {unknown[0]!r}" if unknown else "rows is empty"
        raise UserError(f"{where}: {what} (rows: {', '.join(preset.rows)})")


def _check_claim(claim: Claim, where: str) -> None:
    if claim.measure not in MEASURES:
        raise UserError(f"{where}: measure = {claim.measure!r}: must be one of {', '.join(MEASURES)}")
    if (claim.limit is not None) != (claim.expect in ("below", "same")):
        raise UserError(f'{where}: limit is needed for expect = "below" and "same", and only for these')
    if (claim.expect == "below") != (len(claim.rows) == 1):
        raise UserError(f'{where}: {len(claim.rows)} row(s): "below" takes one row, the others take two or more')
    two = len(claim.by) == 2 and claim.by[0] <= claim.by[1] and len(claim.rows) == 2
    if claim.by and not (two and claim.expect in ("lower", "higher")):
        raise UserError(
            f'{where}: by = {claim.by}: must be [least, largest] share, for "lower" or "higher" and two rows'
        )
