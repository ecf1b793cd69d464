"""What an older dist_sketch has written is read, continued and drawn with: the files of `old_files/make.py`."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from old_files.make import OPTIONS
from PIL import Image
from support import forks

from dist_sketch.data.shards import Shards
from dist_sketch.tracking.tracker import read_metrics

OLD = Path(__file__).parent / "old_files"


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Runs a command beside a copy of the old files, with their narrow networks; returns what it printed."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)

    def run(*arguments: object) -> str:
        prints = tmp_path / "stdout", tmp_path / "stderr"
        env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        pid = forks.fork(prints, arguments=arguments, call=("support.narrow", "narrow"), cwd=tmp_path, env=env)
        assert forks.wait(pid) == 0, prints[1].read_text()
        return prints[0].read_text()

    return run


def test_the_shards_are_good(run: Callable[..., str]) -> None:
    assert "train 4, val 2" in run("verify", "shards")
    for split, count in (("train", 4), ("val", 2)):
        shards = Shards(OLD / "shards", split)
        assert len(shards) == count
        for i in range(count):
            assert shards.read(i, 3).line.shape == (3, 64, 64)


def test_the_run_goes_on_as_it_would_have(tmp_path: Path, run: Callable[..., str]) -> None:
    train = ("train", "--data.shards", "shards", *OPTIONS, "--out", "run")
    assert "this run is finished (4 steps); nothing to do" in run(*train, "--train.epochs", 2)
    assert "resumed from run/checkpoints/step-00000004" in run(*train, "--train.epochs", 3)
    assert json.loads((tmp_path / "run/status.json").read_text())["step"] == 6
    expected = [json.loads(line) for line in (OLD / "longer.jsonl").read_text().splitlines()]
    found = read_metrics(tmp_path / "run")
    assert [(r["kind"], r["step"]) for r in found] == [(r["kind"], r["step"]) for r in expected]
    for ours, theirs in zip(found, expected, strict=True):
        numbers = [n for n in theirs if n.startswith(("loss/", "norm/", "lr/", "val/", "skipped/"))]
        # Another processor may sum in another order
        assert {n: ours[n] for n in numbers} == pytest.approx({n: theirs[n] for n in numbers}, rel=1e-3)


@pytest.mark.parametrize(("source", "drawn"), [("run", "out/raw"), ("export", "out/raw"), ("compact", "compact-raw")])
def test_the_weights_draw_as_they_did(tmp_path: Path, run: Callable[..., str], source: str, drawn: str) -> None:
    run("infer", "--run", source, "--input", "shards", "--out", "new")
    # Other processors may round differently
    assert abs(pixels(tmp_path / "new/raw") - pixels(OLD / drawn)).max() <= 1
    if source != "compact":
        assert abs(pixels(tmp_path / "new/sketch") - pixels(OLD / "out/sketch")).mean() < 0.5


def pixels(folder: Path) -> np.ndarray:
    """Of the two pictures in a folder."""
    return np.stack([np.asarray(Image.open(folder / name), int) for name in ("5.png", "6.png")])


def test_the_run_is_exported_as_it_was(tmp_path: Path, run: Callable[..., str]) -> None:
    for old, more in (("export", ()), ("compact", ("--compact",))):
        run("checkpoint", "export", "run", "--out", "new", *more)
        for name in ("generator.safetensors", "denoise.json"):
            assert (tmp_path / "new" / name).read_bytes() == (OLD / old / name).read_bytes()
        ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "new", OLD / old))
        assert ours == theirs


def test_pages_show_the_old_scores(tmp_path: Path, run: Callable[..., str]) -> None:
    ssim = f"{json.loads((OLD / 'out/metrics.json').read_text())['denoised']['ssim']:.3f}"
    run("report", "out")
    assert ssim in (tmp_path / "out/report.html").read_text()
    run("compare", "out", "run", "--out", "page.html")
    assert ssim in (tmp_path / "page.html").read_text()
