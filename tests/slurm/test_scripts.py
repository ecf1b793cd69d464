"""The sbatch scripts take words as words: run by bash, with stand-ins for SLURM and dist-sketch on the PATH."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from dist_sketch.slurm.submit import NEEDED

SLURM = Path(__file__).parents[2] / "slurm"
ODD = [
    "exp ü",
    "it's",
    'a "b"',
    "$(touch ran)",
    "`touch ran`",
    "; touch ran",
    "$HOME",
    "*",
    "~",
    "\\",
    "#",
    " ",
    "a\tb",
]


class Scripts:
    """Runs scripts in a folder; `dist-sketch` and `srun` only write down their words."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        for matched in ("--mounts=x", "p1"):  # by the words with * and ? below
            (folder / matched).touch()
        for name, does in {
            "scontrol": f'echo "   Command={SLURM}/any.sbatch"',
            "dist-sketch": f'printf "%s\\0" "$@" >> "{folder}/words"',
            "srun": f'printf "%s\\0" "$@" >> "{folder}/words"',
        }.items():
            (folder / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
            (folder / "bin" / name).chmod(0o755)

    def run(self, kind: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        env = {"PATH": path, "HOME": "/home", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", **variables}
        command = ["bash", str(SLURM / f"{kind}.sbatch"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=env)

    def words(self) -> list[str]:
        """Those that the commands got."""
        return (self.folder / "words").read_text(encoding="utf-8").split("\0")[:-1]

    def task(self, train: str, draw: str, locale: str = "C.UTF-8") -> subprocess.CompletedProcess[str]:
        """Runs the first task of an experiment's array, by a plan of these two lines."""
        (self.folder / "plan.txt").write_text(f"# a plan\n\n{train}\n{draw}\n", encoding="utf-8")
        array = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "7", "LC_ALL": locale}
        return self.run("experiment", "data=shards", "out=.", "wrap=--image=* --mounts=?", **array)


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path)


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("odd", ODD)
def test_a_task_gets_the_words_of_its_plan(scripts: Scripts, odd: str, locale: str) -> None:
    run, output = f"{odd}/run", f"{odd}/drawn"
    train, draw = ["train", "--out", run, "--track.name", odd], ["infer", "--run", run, "--out", output, "--x", ""]
    done = scripts.task(shlex.join(["dist-sketch", *train]), shlex.join(["dist-sketch", *draw]), locale)
    assert done.returncode == 0, done.stderr
    words = scripts.words()
    assert words[:5] == ["leg", run, "--requeues", "20", "--then"]
    then = shlex.split(words[5])  # as `leg` reads it
    for step, command in (then, draw), (words[7:], train):
        assert step[0] == "srun"
        assert step[step.index("--logs") :] == ["--logs", f"{run}/logs", "--", *command]
        assert {"--image=*", "--mounts=?"} <= set(step)
    assert not (scripts.folder / "ran").exists()


def test_time_stamps_do_not_leave_a_drawing_out(scripts: Scripts) -> None:
    """The training may go on, with more epochs: what was drawn of it before is old then."""
    for file in ("run/status.json", "drawn/metrics.json"):
        (scripts.folder / file).parent.mkdir()
        (scripts.folder / file).touch()
    os.utime(scripts.folder / "run/status.json", (0, 0))
    assert scripts.task("dist-sketch train --out run", "dist-sketch infer --run run --out drawn").returncode == 0
    assert shlex.split(scripts.words()[5])[-5:] == ["infer", "--run", "run", "--out", "drawn"]


@pytest.mark.parametrize(
    "part", ["$(touch ran)", "`touch ran`", "$'a'; touch ran", '"$(touch ran)"', "> ran", "& touch ran"]
)
def test_a_foreign_plan_is_not_a_script(scripts: Scripts, part: str) -> None:
    """Words that no plan of ours holds unquoted arrive as they are, as far as they are words."""
    scripts.task(f"dist-sketch train --out a {part}", f"dist-sketch infer --run a --out b {part}")
    assert not (scripts.folder / "ran").exists()
    assert scripts.words()[:2] == ["leg", "a"]


@pytest.mark.parametrize(
    ("train", "draw"),
    [
        ("dist-sketch train --out 'a", "dist-sketch infer --out b"),
        ("dist-sketch train --out a", 'dist-sketch infer --out b "'),
        ("dist-sketch train --out", "dist-sketch infer --out b"),
        ("dist-sketch train --out=a", "dist-sketch infer --out b"),
        ("dist-sketch train --out a", "dist-sketch infer --outs b"),
    ],
)
def test_a_damaged_plan_is_a_sentence(scripts: Scripts, train: str, draw: str) -> None:
    done = scripts.task(train, draw)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == ("error: ./plan.txt: the lines of training 1 are damaged; write a new plan")
    assert not (scripts.folder / "words").exists()


@pytest.mark.parametrize("kind", NEEDED)
@pytest.mark.parametrize("odd", ODD)
def test_settings_are_words(scripts: Scripts, kind: str, odd: str) -> None:
    given = [f"{name}={odd}" for name in NEEDED[kind]]
    done = scripts.run(kind, *given, "--option", odd)
    assert done.returncode == 0, done.stderr
    assert scripts.words().count(odd) > len(NEEDED[kind])  # the option, too
    assert not (scripts.folder / "ran").exists()


@pytest.mark.parametrize(
    ("settings", "task", "expected"),
    [
        ([], {}, []),
        ([], {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MAX": "8"}, ["--part", "2/8"]),
        (["parts=9"], {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MAX": "8"}, ["--part", "2/9"]),
        (["merge=1"], {}, ["--merge"]),
    ],
)
def test_a_task_packs_its_part(
    scripts: Scripts, settings: list[str], task: dict[str, str], expected: list[str]
) -> None:
    done = scripts.run("pack", "source=a", "out=b", *settings, "--size", "64", **task)
    assert done.returncode == 0, done.stderr
    words = scripts.words()
    assert words[words.index("dist-sketch") :] == (
        ["dist-sketch", "pack", "a", "--out", "b", "--workers", "1", "--keep", *expected, "--size", "64"]
    )


def test_modules_are_names(scripts: Scripts) -> None:
    """Several, and a * stays a *."""
    loads = f'module() {{ printf "%s|" "$@" > "{scripts.folder}/modules"; }}'
    (scripts.folder / "site.sh").write_text(loads)
    done = scripts.run("pack", "source=a", "out=b", "modules=cuda/12 p*", BASH_ENV=str(scripts.folder / "site.sh"))
    assert done.returncode == 0, done.stderr
    assert (scripts.folder / "modules").read_text() == "load|cuda/12|p*|"
