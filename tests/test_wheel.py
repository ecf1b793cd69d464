"""The built wheel, installed and used from another directory: presets, recipes and the page's template travel in it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import TINY

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds the wheel alone."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder / "site"),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    return folder / "site"


def test_every_file_that_users_name_is_in_it(site: Path) -> None:
    patterns = [("launch", "*.toml"), ("launch", "*.yaml"), ("launch", "*/*"), ("shards", "*.toml"), ("slurm", "*.s*")]
    for folder, pattern in patterns:
        mine = {p.name: p.read_bytes() for p in (ROOT / folder).glob(pattern)}
        assert {p.name: p.read_bytes() for p in (site / "dist_sketch/files" / folder).glob(pattern)} == mine
    (wheel,) = site.parent.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    pages = {p.name for p in (ROOT / "dist_sketch").glob("*.j2")}
    assert pages == {Path(n).name for n in names if n.endswith(".j2")}
    assert not [n for n in names if n.startswith(("tests/", "demo/"))]


def test_the_main_job_from_another_directory(site: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        command = [sys.executable, "-m", "dist_sketch", *map(str, arguments)]
        env = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import dist_sketch; print(dist_sketch.__file__)"
    env = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert str(site) in found.stdout
    run("synth", "pairs", "--count", 4, "--val", 2, "--size", 64)
    run("pack", "demo", "--root", "pairs", "--out", "shards", "--size", 64)
    assert "train 4, val 2" in run("verify", "shards")
    for preset in ("paper", "demo"):
        run("train", "--config", preset, "--data.shards", "shards", "--out", "dry", "--data.batch-size", 4, "--dry-run")
    for preset in ("paper", "sweep"):
        run("experiment", preset, "--data", "shards", "--out", preset, "--dry-run")
    run("train", "--config", "demo", "--data.shards", "shards", "--out", "run", *TINY, "--train.epochs", 1)
    run("infer", "--run", "run", "--input", "shards", "--out", "out")
    run("infer", "--run", "portrait-128", "--input", "shards", "--out", "named")
    run("evaluate", "out")
    assert "report.html" in run("report", "out")
    assert "page.html" in run("compare", "out", "--out", "page.html")
    assert "sha256" in run("weights")
