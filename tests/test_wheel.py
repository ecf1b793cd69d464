"""The built wheel, installed and used from another directory: presets, recipes and the page's template travel in it."""

import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import SMALL

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds the wheel alone."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site")]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return folder / "site"


def test_every_file_that_users_name_is_in_it(site: Path) -> None:
    patterns = [
        ("launch", "*.toml"),
        ("launch", "*.yaml"),
        ("launch", "portrait-*/*"),
        ("launch", "lines/*"),
        ("shards", "*.toml"),
        ("slurm", "*.s*"),
    ]
    for folder, pattern in patterns:
        mine = {p.name: p.read_bytes() for p in (ROOT / folder).glob(pattern)}
        assert {p.name: p.read_bytes() for p in (site / "dist_sketch/files" / folder).glob(pattern)} == mine
    (wheel,) = site.parent.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    pages = {p.name for p in (ROOT / "dist_sketch").rglob("*.j2")}
    assert pages
    assert pages == {Path(n).name for n in names if n.endswith(".j2")}
    assert not [n for n in names if n.startswith(("tests/", "demo/"))]


# Runs each command in a process forked from one interpreter, which has to import the package only once.
COMMANDS = """
import json, os, sys
import dist_sketch.bench.paper_way, dist_sketch.inference.infer, dist_sketch.training.loop
from dist_sketch.__main__ import main

print(dist_sketch.__file__)
for number, arguments in enumerate(json.loads(sys.argv[1])):
    sys.stdout.flush()
    if not (pid := os.fork()):
        os.dup2(os.open(f"{number}.out", os.O_WRONLY | os.O_CREAT), 1)
        sys.argv = ["dist-sketch", *arguments]
        code = 1
        try:
            main()
        except SystemExit as e:
            code = e.code or 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        sys.exit(f"{arguments} failed")
"""


def test_the_main_job_from_another_directory(site: Path, tmp_path: Path) -> None:
    experiments = [f"experiment {preset} --data shards --out {preset} --dry-run" for preset in ("paper", "sweep")]
    dry = "train --data.shards shards --out dry --data.batch-size 4 --dry-run --config"
    small = shlex.join(map(str, SMALL))
    commands = {
        "synth pairs --count 8 --val 2 --size 64": "",
        "pack demo --root pairs --out shards --size 64": "",
        "verify shards": "train 8, val 2",
        f"{dry} paper": "",
        f"{dry} demo": "",
        **dict.fromkeys(experiments, ""),
        f"train --config demo --data.shards shards --out run {small} --train.epochs 1": "",
        "infer --run run --input shards --out out": "",
        "infer --run portrait-128 --input shards --out named": "",
        "evaluate out": "",
        "report out": "report.html",
        "compare out --out page.html": "page.html",
        "weights": "sha256",
    }
    script = [sys.executable, "-c", COMMANDS, json.dumps([shlex.split(c) for c in commands])]
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    for number, (command, said) in enumerate(commands.items()):
        assert said in (tmp_path / f"{number}.out").read_text(), command
