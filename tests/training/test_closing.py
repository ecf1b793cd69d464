"""The two ends of a training: what --dry-run tells before it, and what is done and said after its last epoch."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, Run
from support import forks

from dist_sketch.tracking.tracker import read_metrics

STEPS = 3  # an epoch of the 13 pairs of `shards` at batch 4
SPOILT = 2  # the step whose losses are not finite


@pytest.fixture(scope="module")
def options(shards: Path) -> tuple[Any, ...]:
    return ("train", "--data.shards", shards, *SMALL, "--train.epochs", 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, options: tuple[Any, ...]) -> Path:
    """FOLDER/run and FOLDER/out, what it said; read only."""
    folder = tmp_path_factory.mktemp("finished")
    call = ("support.hooks", "spoils", SPOILT)
    pid = forks.fork((folder / "out", folder / "err"), arguments=(*options, "--out", folder / "run"), call=call)
    assert forks.wait(pid) == 0, (folder / "err").read_text()
    return folder


def test_a_step_that_is_not_finite_does_not_void_the_mean_of_its_epoch(finished: Path) -> None:
    records = read_metrics(finished / "run")
    (bad,) = [r["step"] for r in records if r["kind"] == "nonfinite"]
    assert bad == SPOILT
    losses = {r["step"]: r["loss/g"] for r in records if r["kind"] == "train"}
    assert losses.pop(SPOILT) is None
    first, second = (r for r in records if r["kind"] == "epoch")
    assert first["loss/g"] == pytest.approx((losses[1] + losses[3]) / 2)
    assert (first["finite_steps/g"], second["finite_steps/g"]) == (STEPS - 1, STEPS)
    line = next(line for line in (finished / "out").read_text().splitlines() if line.startswith("epoch 1/2"))
    assert f"means D {first['loss/d']:.3f} G {first['loss/g']:.3f};" in line


def test_it_ends_with_the_scores_and_the_next_command(finished: Path, shards: Path) -> None:
    run, said = finished / "run", (finished / "out").read_text().splitlines()
    (score,) = [r for r in read_metrics(run) if r["kind"] == "val"]
    assert any(line.startswith("choosing the noise removal on ") and line.endswith(" ...") for line in said)
    at = said.index(f"{run}: finished, 2 epochs, 6 steps; the weights of step 6 draw")
    assert said[at + 1].startswith(f"  validation: SSIM {score['val/ssim']:.3f}, SCOOT {score['val/scoot']:.3f}")
    assert f"  noise removal: {run / 'denoise.json'}" in said
    assert f"  weights and their state: {run / 'checkpoints' / 'step-00000006'}" in said
    assert said[-1] == f"next: dist-sketch infer --run {run} --input {shards} --out out/run"


def test_asked_to_stop_while_it_chooses_it_ends_and_later_makes_only_that(
    tmp_path: Path, cli: Run, options: tuple[Any, ...], finished: Path
) -> None:
    run, files = tmp_path / "run", (tmp_path / "out", tmp_path / "err")
    shutil.copytree(finished / "run", run)
    (run / "denoise.json").unlink()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "running"}))

    def checkpoints() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in (run / "checkpoints").rglob("*") if p.is_file()}

    before = checkpoints()
    pause = ("support.hooks", "pauses", tmp_path / "pause", "training.closing:refuse_to_go_on:1")
    pid = forks.fork(files, arguments=(*options, "--out", run), call=pause)
    forks.wait_until((tmp_path / "pause.0").exists, "the choice", files[1].read_text)
    os.kill(pid, signal.SIGINT)
    (tmp_path / "pause.0.go").touch()
    assert forks.wait(pid) == os.EX_TEMPFAIL, files[1].read_text()
    assert "the same command goes on from there" in files[0].read_text()
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    assert checkpoints() == before
    assert not (run / "denoise.json").exists()
    again = cli(*options, "--out", run)
    assert again.returncode == 0, again.stderr
    assert "epoch" not in again.stdout.split("resumed from")[1].split("choosing")[0]  # no step is made again
    assert (run / "denoise.json").exists()
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert checkpoints() == before


def test_a_dry_run_tells_what_the_training_will_take(
    tmp_path: Path, cli: Run, options: tuple[Any, ...], finished: Path
) -> None:
    new = (*options, "--train.epochs", 6, "--train.validate-interval-epochs", 4, "--out", tmp_path / "run")

    def told(*arguments: object) -> dict[str, str]:
        done = cli(*arguments)
        assert done.returncode == 0, done.stderr
        return {line[:28].strip(): line[29:] for line in done.stdout.splitlines()}

    found = told(*new, "--dry-run")
    assert found["weights"].startswith("generator ")
    assert found["validation pairs"] == "5 of 5, scored 2 time(s)"
    assert found["left out in an epoch"].startswith("1 pair(s), ")
    assert "not known before it has run" in found["time"]
    states = sum(p.stat().st_size for p in (finished / "run/checkpoints/step-00000006").iterdir())
    assert f"4 checkpoints of {states / 1e6:.0f} MB at once, 2 picture(s)" in found["disk"]
    found = told(*new, "--dry-run-steps", 2)
    assert ": 18 steps of " in found["time"]
    assert "as 2 of them took in memory" in found["time"]
    assert list(tmp_path.iterdir()) == []
    longer = told(*options, "--out", finished / "run", "--train.epochs", 4, "--dry-run")
    assert "for the 6 steps that are left, at the speed of the last epochs" in longer["time"]
    few = told(*new, "--data.weights", 3, "--data.batch-size", 20, "--dry-run-steps", 1)  # of 13 pairs
    assert "as 1 of them took in memory" in few["time"]
    double = told(*new, "--train.precision", "fp64", "--dry-run")
    assert f"4 checkpoints of {2 * states / 1e6:.0f} MB at once" in double["disk"]
    wrong = cli(*new, "--dry-run-steps", -1)
    assert (wrong.returncode, "--dry-run-steps -1: must be from 0 to" in wrong.stderr) == (2, True)
