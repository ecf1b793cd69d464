"""What a sentence tells the user to type works when it is typed."""

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import forks
from support.features import replace_inception
from support.narrow import narrow

OLD = Path(__file__).parents[1] / "old_files"
COMMAND = re.compile(r"`(dist-sketch [^`]+)`|: (dist-sketch [^;]+);")
Type = Callable[[str], tuple[int, str]]


@pytest.fixture
def typed(tmp_path: Path) -> Type:
    """Runs a command line beside a copy of the old files, with their narrow networks: exit code, standard error.

    Inception is replaced, because no score matters here.
    """
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)

    def run(line: str) -> tuple[int, str]:
        prints = tmp_path / "stdout", tmp_path / "stderr"
        prints[1].unlink(missing_ok=True)
        env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        arguments = tuple(shlex.split(line)[1:])
        pid = forks.fork(prints, arguments=arguments, call=("test_advice", "narrow_and_quick"), cwd=tmp_path, env=env)
        return forks.wait(pid), prints[1].read_text(encoding="utf-8")

    return run


def narrow_and_quick() -> None:
    """Before the command."""
    narrow()
    replace_inception()


def advised(sentence: str, **places: str) -> list[str]:
    """The lines that the sentence tells to type, with real names in the place of those in capitals."""
    lines = [one or other for one, other in COMMAND.findall(sentence)]
    assert lines, sentence
    for name, value in places.items():
        lines = [re.sub(rf"\b{name}\b", value, line) for line in lines]
    return lines


def follow(typed: Type, sentence: str, **places: str) -> None:
    """Types what the sentence tells."""
    for line in advised(sentence, **places):
        assert typed(line) == (0, ""), line


@pytest.mark.parametrize("out", ["small", "an export", "run/export"])
def test_scores_of_weights_in_8_bits(typed: Type, tmp_path: Path, out: str) -> None:
    code, said = typed(f"dist-sketch checkpoint export run --out '{out}' --compact --scores out")
    assert code == 2
    assert said.startswith("error: --scores out: was drawn with other weights than these in 8 bits")
    follow(typed, said, SHARDS="shards", OUT="drawn")
    assert "n = 2 in every score" in (tmp_path / out / "README.md").read_text(encoding="utf-8")
    small, whole = ((tmp_path / f / "generator.safetensors").stat().st_size for f in (out, "export"))
    assert small < 0.6 * whole


def an_export(folder: Path) -> str:
    return "export"


def the_shards(folder: Path) -> str:
    return "shards"


def an_odd_name(folder: Path) -> str:
    (folder / "export").rename(folder / "it's one")
    return "it's one"


def what_nobody_made(folder: Path) -> str:
    return "missing"


def an_empty_folder(folder: Path) -> str:
    (folder / "empty").mkdir()
    return "empty"


def somebody_s_folder(folder: Path) -> str:
    (folder / "mine").mkdir()
    (folder / "mine/notes").touch()
    return "mine"


def a_file(folder: Path) -> str:
    (folder / "notes.txt").touch()
    return "notes.txt"


PLACES = [an_export, an_odd_name, what_nobody_made, an_empty_folder]


@pytest.mark.parametrize("place", PLACES, ids=lambda f: f.__name__)
def test_a_report_of_what_is_no_drawing(typed: Type, tmp_path: Path, place: Callable[[Path], str]) -> None:
    named = place(tmp_path)
    code, said = typed(f"dist-sketch report {shlex.quote(named)}")
    assert code == 2
    assert said.startswith(f"error: {named}: ")
    said = said.replace("infer ...", "infer --run RUN --input SHARDS")
    follow(typed, said, RUN="run", SHARDS="shards", OUT="made")
    out = "made" if (tmp_path / "made").exists() else named
    assert typed(f"dist-sketch report {out}") == (0, "")
    assert (tmp_path / out / "report.html").is_file()


@pytest.mark.parametrize("place", [the_shards, somebody_s_folder, a_file], ids=lambda f: f.__name__)
def test_a_report_of_what_is_no_run_either(typed: Type, tmp_path: Path, place: Callable[[Path], str]) -> None:
    named = place(tmp_path)
    code, said = typed(f"dist-sketch report {named}")
    assert code == 2
    assert said.startswith(f"error: {named}: ")
    assert advised(said, RUN="run", SHARDS="shards", OUT="made") == [
        "dist-sketch infer --run run --input shards --out made"
    ]


def test_a_report_of_an_experiment_or_of_a_part_of_a_drawing(typed: Type, tmp_path: Path) -> None:
    assert typed("dist-sketch experiment paper --data shards --out exp --data.batch-size 4 --dry-run") == (0, "")
    code, said = typed("dist-sketch report exp")
    assert (code, said) == (
        2,
        "error: exp: is an experiment: its page is exp/compare.html; or name one of the folders in exp/outputs\n",
    )
    code, said = typed("dist-sketch report out/raw")
    assert (code, said) == (2, "error: out/raw: is a part of what was drawn; name out\n")
    assert typed("dist-sketch report out") == (0, "")
