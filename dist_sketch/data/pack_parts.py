"""Packing in parts, each made by a job of its own (a SLURM array): OUT/parts/K-of-N, joined at the end.

A part holds its share of the pairs as `data.prepare` makes them: samples.tar with the samples, and pairs.json with what
became of each pair. So a merge writes what one process would have written, from the parts instead of the pictures.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import open_regular, read_json, write_atomic
from dist_sketch.core.folders import refuse_others, sync
from dist_sketch.core.part import PARTS, Part
from dist_sketch.core.saved import Count, Digest
from dist_sketch.core.toml_dataclass import Rule, checked
from dist_sketch.data.looks import WHY, Look
from dist_sketch.data.prepare import Pictures, Prepared, Result
from dist_sketch.data.recipe import FilePair, Problem, Recipe

SAMPLES, PAIRS = "samples.tar", "pairs.json"
NAME = re.compile(r"(\d{1,7})-of-(\d{1,7})", re.ASCII)
Kind = Annotated[str, Rule(f"one of {', '.join(WHY)}", lambda v: v in WHY)]  # of `looks.Look`


class WhyNot(TypedDict):
    """Why a file cannot be used."""

    file: str
    why: str


class Row(TypedDict):
    """What became of a pair: a sample, or problems."""

    key: str
    problems: list[WhyNot]
    length: NotRequired[Count]
    sha256: NotRequired[Digest]
    kinds: NotRequired[list[Kind]]
    digests: NotRequired[list[Digest]]


class Content(TypedDict):
    """pairs.json of a part."""

    plan: Digest
    pairs: list[Row]


def plan_of(recipe: Recipe, pictures: Pictures, pairs: Iterable[FilePair], problems: Iterable[Problem]) -> str:
    """SHA-256 (hex) of what all jobs of a packing must agree on: which pairs there are, and how pictures are made."""
    digest = hashlib.sha256()

    def add(*values: Any) -> None:
        digest.update(json.dumps(values).encode() + b"\n")

    add(recipe.name, recipe.license, recipe.val_fraction, asdict(pictures))
    for problem in problems:
        add(problem.file, problem.why)
    for pair in pairs:
        sides = [(side, str(path.relative_to(recipe.root)), half) for side, path, half in pair.sides()]
        add(pair.split, pair.key, sides, pair.labels)
    return digest.hexdigest()


def folder_of(out: Path, part: Part) -> Path:
    """The folder of a part."""
    return out / PARTS / part.name


def write(folder: Path, plan: str, pairs: Sequence[FilePair], results: Iterable[Result]) -> list[Problem]:
    """Writes a part into its new folder; returns the problems of its pairs."""
    rows: list[Row] = []
    problems: list[Problem] = []
    with open(folder / SAMPLES, "xb") as file:
        for pair, result in zip(pairs, results, strict=True):
            if isinstance(result, list):
                rows.append({"key": pair.key, "problems": [{"file": p.file, "why": p.why} for p in result]})
                problems += result
                continue
            _, block, look = result
            rows.append({
                "key": pair.key,
                "problems": [],
                "length": len(block),
                "sha256": hashlib.sha256(block).hexdigest(),
                "kinds": look.kinds,
                "digests": [digest.hex() for digest in look.digests],
            })  # fmt: skip
            file.write(block)
    sync(folder / SAMPLES)
    write_atomic(folder / PAIRS, json.dumps({"plan": plan, "pairs": rows}, ensure_ascii=False))
    return problems


def is_packed(folder: Path, plan: str) -> bool:
    """Whether a part is there already.

    Raises:
        UserError: it is damaged, or of another packing.
    """
    if not folder.exists():
        return False
    _rows(folder, plan)
    return True


def results(out: Path, plan: str, pairs: Sequence[FilePair]) -> Generator[Result, None, None]:
    """What all parts have made of the pairs, in order.

    Raises:
        UserError: a part is missing, damaged, or of another packing.
    """
    for part in _parts(out):
        folder = folder_of(out, part)
        own = [pairs[i] for i in part.share(len(pairs))]
        rows = _rows(folder, plan)
        try:
            with io.BufferedReader(open_regular(folder / SAMPLES)) as file:
                yield from _results(folder, own, rows, file.read)
        except OSError as e:
            raise UserError(f"{folder / SAMPLES}: cannot be read ({e.strerror}); {_again(folder)}") from e


def _results(
    folder: Path, pairs: Sequence[FilePair], rows: Sequence[Row], read: Callable[[int], bytes]
) -> Iterator[Result]:
    if [row["key"] for row in rows] != [pair.key for pair in pairs]:
        raise UserError(f"{folder}: holds other pairs; {_again(folder)}")
    if sum(row.get("length", 0) for row in rows) != (folder / SAMPLES).stat().st_size:
        raise UserError(f"{folder / SAMPLES}: is too short or too long; {_again(folder)}")
    for pair, row in zip(pairs, rows, strict=True):
        if row["problems"]:
            yield [Problem(problem["file"], problem["why"]) for problem in row["problems"]]
            continue
        block = read(row.get("length", 0))
        if hashlib.sha256(block).hexdigest() != row.get("sha256"):
            raise UserError(f"{folder / SAMPLES}: the sample {pair.key!r} is damaged; {_again(folder)}")
        look = Look(row.get("kinds", []), [bytes.fromhex(digest) for digest in row.get("digests", [])])
        yield Prepared(pair, block, look)


def _rows(folder: Path, plan: str) -> list[Row]:
    try:
        found = checked(Content, read_json(folder / PAIRS), str(folder / PAIRS))
    except UserError as e:
        raise UserError(f"{e}; the part is damaged: {_again(folder)}") from e
    if found["plan"] != plan:
        raise UserError(
            f"{folder}: was packed from other pairs, with other labels, or into other pictures than this command asks "
            f"for; {_again(folder)}"
        )
    rows: list[Row] = found["pairs"]
    return rows


def _again(folder: Path) -> str:
    return f"remove this folder, and pack it again: --part {folder.name.replace('-of-', '/')}"


def _parts(out: Path) -> list[Part]:
    """All parts of the packing, if all of them are there."""
    there = {name for name in names(out) if NAME.fullmatch(name)}
    totals = {int(name.partition("-of-")[2]) for name in there}
    if not there:
        raise UserError(
            f"{out}: has no parts to merge; pack them first, each by a job of its own: the same command with --part "
            "1/N to --part N/N instead of --merge"
        )
    if len(totals) > 1:
        raise UserError(f"{out / PARTS}: holds parts of {' and of '.join(map(str, sorted(totals)))}; remove those that "
                        "are of another packing")  # fmt: skip
    (total,) = totals
    parts = [Part(k + 1, total) for k in range(total)]
    missing = [f"{part.number}/{total}" for part in parts if part.name not in there]
    if missing:
        raise UserError(f"{out}: not packed yet: --part {', '.join(missing)}")
    return parts


def names(out: Path) -> list[str]:
    """What lies in the folder of the parts."""
    return [path.name for path in (out / PARTS).iterdir()] if (out / PARTS).is_dir() else []


def refuse_foreign_parts(out: Path) -> None:
    """Refuses to remove the folder of the parts if it holds files of somebody else.

    Raises:
        UserError: it does.
    """
    ours = [name for name in names(out) if NAME.fullmatch(name)]
    refuse_others(out / PARTS, "these parts", ours)
    for name in ours:
        refuse_others(out / PARTS / name, "this part", (SAMPLES, PAIRS))
