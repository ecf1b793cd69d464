"""Runs as a user starts, stops, repeats and changes them: real processes on real shards."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, TINY, Run, launch, write_pairs
from safetensors.numpy import load_file
from support import forks, hooks

from dist_sketch.core.config import DenoiseConfig
from dist_sketch.data.shards import Shards
from dist_sketch.metrics import similarity
from dist_sketch.model import checkpoint
from dist_sketch.model.denoise import denoise
from dist_sketch.model.pretrained import SketchGenerator
from dist_sketch.tracking.tracker import read_metrics
from dist_sketch.training.validation import drawing

STEPS = 3  # an epoch of the 13 pairs of `shards` at batch 4


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def weights(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.safetensors"))}


def losses(run: Path) -> list[tuple[int, float, float]]:
    return [(r["step"], r["loss/d"], r["loss/g"]) for r in read_metrics(run) if r["kind"] == "train"]


def with_a_flipped_bit(shards: Path, copy: Path, name: str) -> Path:
    """A copy of the shards in which one sample of the shard `name` is damaged."""
    shutil.copytree(shards, copy)
    data = bytearray((copy / name).read_bytes())
    data[2048] ^= 1
    (copy / name).write_bytes(data)
    return copy


@pytest.fixture(scope="module")
def options(shards: Path) -> tuple[Any, ...]:
    noise = ("--generator.detail", 8, "--generator.noise", 1)  # a resumed run has to draw the same numbers
    return ("train", "--data.shards", shards, *SMALL, *noise, "--train.epochs", 3, "--generator.ema", 0.9)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cli: Run, options: tuple[Any, ...]) -> Path:
    """A run of three epochs that nothing disturbed; read only."""
    run = tmp_path_factory.mktemp("finished") / "run"
    done = cli(*options, "--out", run)
    assert done.returncode == 0, done.stderr
    return run


def test_a_run_leaves_what_is_promised(finished: Path) -> None:
    assert status(finished)["state"] == "finished"
    assert status(finished)["step"] == 3 * STEPS
    names = {p.name for p in finished.iterdir()}
    files = {".lock", "config.json", "denoise.json", "index.html", "metrics.jsonl", "status.json"}
    assert names == files | {"checkpoints", "samples"}
    newest = finished / "checkpoints" / f"step-{3 * STEPS:08d}"
    assert {p.name for p in newest.iterdir()} == {
        *("generator.safetensors", "discriminator.safetensors", "ema.safetensors"),
        *("state.pt", "rng.pt", "checkpoint.json"),
    }
    assert len(list((finished / "checkpoints").iterdir())) == 3  # checkpoint.keep
    records = read_metrics(finished)
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 3 * STEPS + 1))
    assert [r["epoch"] for r in records if r["kind"] == "epoch"] == [0, 1, 2]
    assert not any("loss/g_ssim" in r for r in records)  # it has no weight here
    (score,) = [r for r in records if r["kind"] == "val"]
    assert -1 <= score["val/ssim"] <= 1
    # TIMER 2: D rests in epoch 1; each change of lock is logged with its reason
    locks = [(r["step"], r["train_d"], r["train_g"]) for r in records if r["kind"] == "lock"]
    assert locks == [(1, True, True), (STEPS + 1, False, True), (2 * STEPS + 1, True, True)]
    assert "timer" in [r for r in records if r["kind"] == "lock"][1]["reason"]


def test_the_weights_of_the_lowest_kid_draw(tmp_path: Path, options: tuple[Any, ...]) -> None:
    """The rate is so high that the last epoch need not be the best one; the best one draws."""
    run, more = tmp_path / "run", ("--train.validate-fid", "--train.validate-interval-epochs", 1)
    command = (*options, *more, "--checkpoint.choose", "kid", "--checkpoint.keep", 1, "--out", run)
    command = (*command, "--optim.lr-g", 0.03, "--optim.lr-d", 1e-5, "--loss.lambda-ssim", 1.0)
    pairs = ("support.forks", "choose_on_pairs", 13)  # all of them, as in earnest
    pid = forks.fork((tmp_path / "out", tmp_path / "err"), arguments=command, call=pairs)
    assert forks.wait(pid) == 0, (tmp_path / "err").read_text()
    assert all(0 < r["loss/g_ssim"] < 2 for r in read_metrics(run) if r["kind"] == "train")
    scores = {r["step"]: r["val/kid"] for r in read_metrics(run) if r["kind"] == "val"}
    assert list(scores) == [STEPS, 2 * STEPS, 3 * STEPS]
    best = min(scores, key=lambda step: scores[step])
    assert status(run)["draws"] == best
    kept = {f"step-{step:08d}" for step in (best, 3 * STEPS)}
    assert {p.name for p in (run / "checkpoints").iterdir()} == kept
    model = SketchGenerator.load(run)
    assert model.step == best
    calibrated = json.loads((run / "denoise.json").read_text())
    assert (calibrated["pairs"], calibrated["with_kid"]) == (13, True)
    assert calibrated["candidates"][0]["ssim"] == pytest.approx(gray_ssim_on_training_pairs(run, model), abs=1e-6)


def gray_ssim_on_training_pairs(run: Path, model: SketchGenerator) -> float:
    """SSIM of the model's drawings of the training pairs, measured as the calibration measures it."""
    shards = Shards(Path(json.loads((run / "config.json").read_text())["config"]["data"]["shards"]), "train")
    found = []
    for i in range(len(shards)):
        sample = shards.read(i, 3)
        assert sample.sketch is not None
        with drawing(model.net, torch.device("cpu")) as draw:
            drawn = denoise(draw(sample.line[None])[0], DenoiseConfig(filter="none", shadows=False))
        real = denoise(sample.sketch, DenoiseConfig(filter="none", shadows=False))
        found.append(similarity.ssim(drawn, real))
    return float(np.mean(found))


def paused_in_step_5(folder: Path, *arguments: object) -> int:
    """Starts a run that waits at the beginning of step 5 until the file FOLDER/pause.0.go is there; its process id."""
    call = ("support.hooks", "pauses", folder / "pause", "training.loop:train_batch:5")
    pid = forks.fork((folder / "out", folder / "err"), arguments=arguments, call=call)
    forks.wait_until((folder / "pause.0").exists, "step 5", (folder / "err").read_text)
    return pid


def test_killed_in_mid_epoch_it_ends_bit_equal(
    tmp_path: Path, new_cli: Run, options: tuple[Any, ...], finished: Path
) -> None:
    """The second process is a new interpreter, which has another hash seed, so that its sets have other orders."""
    run = tmp_path / "run"
    pid = paused_in_step_5(tmp_path, *options, "--out", run)  # the second of epoch 1
    os.kill(pid, signal.SIGKILL)
    assert forks.wait(pid) == -signal.SIGKILL
    assert checkpoint.find(run) == run / "checkpoints" / "step-00000004"
    again = new_cli(*options, "--out", run)
    assert again.returncode == 0, again.stderr
    assert "resumed from" in again.stdout
    assert weights(run, 3 * STEPS) == weights(finished, 3 * STEPS)
    assert losses(run) == losses(finished)  # metrics.jsonl was cut back: each step once


def test_asked_to_stop_it_saves_and_goes_on(tmp_path: Path, cli: Run, options: tuple[Any, ...], finished: Path) -> None:
    run = tmp_path / "run"
    pid = paused_in_step_5(tmp_path, *options, "--out", run)
    os.kill(pid, signal.SIGUSR2)
    (tmp_path / "pause.0.go").touch()
    assert forks.wait(pid) == os.EX_TEMPFAIL
    assert "the same command goes on" in (tmp_path / "out").read_text()
    stopped = status(run)
    assert (stopped["state"], stopped["step"]) == ("stopped", 5)
    assert checkpoint.find(run) == run / "checkpoints" / "step-00000005"
    assert cli(*options, "--out", run).returncode == 0
    assert weights(run, 3 * STEPS) == weights(finished, 3 * STEPS)


def test_finished_run_started_again_writes_nothing(cli: Run, options: tuple[Any, ...], finished: Path) -> None:
    def snapshot() -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in finished.rglob("*")}

    before = snapshot()
    again = cli(*options, "--out", finished)
    assert again.returncode == 0
    assert "is finished" in again.stdout
    assert snapshot() == before


def test_without_the_option_a_run_keeps_its_epochs_also_if_the_default_is_less(
    tmp_path: Path, cli: Run, options: tuple[Any, ...], finished: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    kept = json.loads((run / "config.json").read_text())
    kept["config"]["train"]["epochs"] = 400
    (run / "config.json").write_text(json.dumps(kept))
    at = options.index("--train.epochs")
    done = cli(*options[:at], *options[at + 2 :], "--out", run, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^steps +1200$", done.stdout, re.MULTILINE)


def test_more_epochs_go_on_and_other_settings_are_refused(
    tmp_path: Path, cli: Run, options: tuple[Any, ...], finished: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    moved = json.loads((run / "config.json").read_text())
    moved["facts"]["device"] = "another one"
    (run / "config.json").write_text(json.dumps(moved))
    refused = cli(*options, "--out", run, "--optim.lr-g", 1e-3)
    assert refused.returncode == 2
    assert "optim.lr_g: 0.002 -> 0.001" in refused.stderr
    fewer = cli(*options, "--out", run, "--train.epochs", 2)
    assert fewer.returncode == 2
    assert "train.epochs: 3 -> 2 (may only grow)" in fewer.stderr
    for epochs in (4, 5):
        more = cli(*options, "--out", run, "--train.epochs", epochs)
        assert more.returncode == 0, more.stderr
        assert status(run)["step"] == epochs * STEPS
        assert json.loads((run / "config.json").read_text())["facts"]["device"] == "another one, then cpu"


@pytest.mark.parametrize("state", ["finished", "stopped", "failed", "running"])
@pytest.mark.parametrize("preset", [False, True])
def test_a_run_gets_longer_only_when_asked(
    tmp_path: Path, cli: Run, options: tuple[Any, ...], finished: Path, state: str, preset: bool
) -> None:
    """Without --train.epochs there are 50, or those of a preset."""
    run, at = tmp_path / "run", options.index("--train.epochs")
    shutil.copytree(finished, run)
    (run / "status.json").write_text(json.dumps(status(run) | {"state": state}))
    if state != "finished":
        shutil.rmtree(run / "checkpoints" / f"step-{3 * STEPS:08d}")
    (tmp_path / "longer.toml").write_text("[train]\nepochs = 5\n")
    more = ("--config", tmp_path / "longer.toml") if preset else ()
    again = cli(*options[:at], *options[at + 2 :], *more, "--out", run)
    assert again.returncode == 0, again.stderr
    assert (status(run)["state"], status(run)["step"]) == ("finished", 3 * STEPS)
    assert json.loads((run / "config.json").read_text())["config"]["train"]["epochs"] == 3
    assert json.loads((run / "config.json").read_text())["facts"]["steps"] == 3 * STEPS
    assert weights(run, 3 * STEPS) == weights(finished, 3 * STEPS)


@pytest.mark.parametrize("again", [("--train.epochs", 4), ()], ids=["the same command", "without a length"])
def test_a_run_that_was_killed_while_it_began_to_grow_is_not_finished(
    tmp_path: Path, cli: Run, options: tuple[Any, ...], finished: Path, again: tuple[Any, ...]
) -> None:
    """Its config.json has more epochs already; its status.json is still that of the shorter run."""
    run, at = tmp_path / "run", options.index("--train.epochs")
    shutil.copytree(finished, run)
    settings = json.loads((run / "config.json").read_text())
    settings["config"]["train"]["epochs"] = 4
    (run / "config.json").write_text(json.dumps(settings))
    grown = cli(*options[:at], *options[at + 2 :], *again, "--out", run)
    assert grown.returncode == 0, grown.stderr
    assert (status(run)["state"], status(run)["epochs"], status(run)["step"]) == ("finished", 4, 4 * STEPS)


@pytest.mark.parametrize("state", ["stopped", "failed", "running", "finished"])
@pytest.mark.parametrize("kind", ["a link to nowhere", "an empty folder", "nothing"])
def test_a_run_whose_checkpoints_are_out_of_sight_does_not_begin_anew(
    tmp_path: Path, cli: Run, options: tuple[Any, ...], finished: Path, state: str, kind: str
) -> None:
    run, home = tmp_path / "run", tmp_path / "run/checkpoints"
    shutil.copytree(finished, run)
    shutil.rmtree(home)
    if kind == "an empty folder":
        home.mkdir()
    elif kind == "a link to nowhere":
        home.symlink_to(tmp_path / "unmounted")
    (run / "status.json").write_text(json.dumps(status(run) | {"state": state}))
    before = {name: (run / name).read_bytes() for name in ("config.json", "metrics.jsonl", "status.json")}
    refused = cli(*options, "--train.epochs", 5, "--out", run)
    assert refused.returncode == 2, refused.stdout
    assert refused.stderr.startswith(f"error: {home}: ")
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_run_that_failed_before_it_was_saved_begins_anew(
    tmp_path: Path, cli: Run, options: tuple[Any, ...], finished: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints")
    (run / "status.json").write_text(json.dumps(status(run) | {"state": "failed", "step": 2, "saved": 0}))
    assert cli(*options, "--out", run).returncode == 0
    assert losses(run) == losses(finished)


def test_the_share_of_locked_steps_is_one_after_the_interval_of_the_log_has_changed(
    tmp_path: Path, cli: Run, options: tuple[Any, ...]
) -> None:
    """D is locked in the second of three epochs."""
    for epochs, interval in ((2, 100), (3, 1)):
        more = ("--train.epochs", epochs, "--track.log-interval-steps", interval, "--out", tmp_path / "run")
        assert cli(*options, *more).returncode == 0
    lines = [(r["step"], r["lock/d"]) for r in read_metrics(tmp_path / "run") if r["kind"] == "train"]
    assert lines == [(7, pytest.approx(3 / 7)), (8, 0), (9, 0)]


SHORT_OF_MEMORY = {
    "of the GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "for a tensor": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "for an object": MemoryError,
}


def runs_out_of_memory(kind: str, place: str) -> None:
    """Hook: there is too little memory at a place."""

    def fail() -> None:
        raise SHORT_OF_MEMORY[kind]()

    hooks.at(place, fail)


@pytest.mark.parametrize("place", ["training.run:Step:1", "training.step:Step._compute:3"])
@pytest.mark.parametrize("kind", SHORT_OF_MEMORY)
def test_too_little_memory_is_a_sentence(tmp_path: Path, options: tuple[Any, ...], kind: str, place: str) -> None:
    prints = tmp_path / "out", tmp_path / "err"
    call = ("test_loop", "runs_out_of_memory", kind, place)
    pid = forks.fork(prints, arguments=(*options, "--out", tmp_path / "run"), call=call)
    assert forks.wait(pid) == 2
    said = prints[1].read_text()
    assert said.startswith("error: data.batch_size = 4, generator.width = 8: the memory of ")
    assert len(said.splitlines()) == 1
    assert ("the GPU" in said) == (kind == "of the GPU")
    if "Step._compute" in place:
        assert status(tmp_path / "run")["state"] == "failed"


def test_more_epochs_of_a_run_whose_rates_fall_come_with_a_warning(
    tmp_path: Path, cli: Run, options: tuple[Any, ...]
) -> None:
    command = (*options, "--out", tmp_path / "run", "--optim.decay", 1.0)
    first = cli(*command, "--train.epochs", 1)
    assert first.returncode == 0, first.stderr
    more = cli(*command, "--train.epochs", 2)
    assert "were planned to reach 0 after 1 epochs and now reach it after 2" in more.stdout
    rates = [r["lr/g"] / 2e-3 for r in read_metrics(tmp_path / "run") if r["kind"] == "train"]
    assert rates == pytest.approx([1, 2 / 3, 1 / 3, 3 / 6, 2 / 6, 1 / 6])
    assert "planned to reach 0" not in first.stdout + cli(*command, "--train.epochs", 2).stdout


def test_other_data_are_refused(
    tmp_path: Path, cli: Run, options: tuple[Any, ...], finished: Path, pairs: Path
) -> None:
    other = tmp_path / "other"
    assert cli("pack", pairs, "--out", other, "--size", 128).returncode == 0
    refused = cli(*options, "--data.shards", other, "--out", finished)
    assert refused.returncode == 2
    assert "another data set" in refused.stderr


def test_dry_run_writes_nothing(tmp_path: Path, cli: Run, options: tuple[Any, ...]) -> None:
    dry = cli(*options, "--out", tmp_path / "run", "--dry-run")
    assert dry.returncode == 0
    assert "steps_an_epoch" in dry.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (("--data.batch-size", 14), "an epoch has only 13 pairs"),
        (("--data.shards", "/nowhere"), "/nowhere"),
        (("--norm", "instance"), "the bottleneck is 1 x 1 and has no variance"),
        (("--config", "nowhere"), "a name in launch/ (there: demo, finetune, paper, portrait, portrait-256)"),
        (("--train.epochs", 0), "train.epochs = 0: must be at least 1"),
        (("--train.accumulate", 3), "does not divide the 4 pair(s) of a rank"),
        (("--train.sync-batchnorm",), "CPUs have no synchronized BatchNorm"),
        (("--expect-world-size", 2), "accelerate launch --multi_gpu --num_processes 2"),
    ],
)
def test_mistakes_get_a_sentence(
    tmp_path: Path, cli: Run, options: tuple[Any, ...], changed: tuple[Any, ...], sentence: str
) -> None:
    wrong = cli(*options, "--out", tmp_path / "run", *changed)
    assert wrong.returncode == 2
    assert sentence in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, cli: Run, options: tuple[Any, ...]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    wrong = cli(*options, "--out", tmp_path)
    assert wrong.returncode == 2
    assert "is not a run folder" in wrong.stderr


def test_damaged_shard_stops_the_run_with_its_key(
    tmp_path: Path, cli: Run, options: tuple[Any, ...], shards: Path
) -> None:
    damaged = with_a_flipped_bit(shards, tmp_path / "shards", "train-000001.tar")
    stopped = cli(*options, "--data.shards", damaged, "--out", tmp_path / "run")
    assert stopped.returncode == 2
    assert "train-000001.tar: sample '6'" in stopped.stdout
    assert status(tmp_path / "run")["state"] == "failed"
    allowed = cli(*options, "--data.shards", damaged, "--out", tmp_path / "other", "--data.skip-bad", 3)
    assert allowed.returncode == 0, allowed.stderr


def test_a_damaged_validation_sample_has_the_same_budget(tmp_path: Path, cli: Run, shards: Path) -> None:
    damaged = with_a_flipped_bit(shards, tmp_path / "shards", "val-000000.tar")
    options = ("train", "--data.shards", damaged, *SMALL, "--train.epochs", 1)
    stopped = cli(*options, "--out", tmp_path / "run")
    assert stopped.returncode == 2
    assert "1 val sample(s) are unreadable, 0 are allowed (--data.skip-bad N)" in stopped.stderr
    allowed = cli(*options, "--data.skip-bad", 1, "--out", tmp_path / "other")
    assert allowed.returncode == 0, allowed.stderr
    assert "val-000000.tar: sample" in allowed.stdout
    (score,) = [r for r in read_metrics(tmp_path / "other") if r["kind"] == "val"]
    assert -1 <= score["val/ssim"] <= 1
    assert len(list((tmp_path / "other" / "samples").iterdir())) == 1


def test_losses_that_stay_infinite_stop_the_run(tmp_path: Path, cli_ranks: Run, shards: Path) -> None:
    """Too high a rate: all ranks skip these steps, their pairs are logged, and the error names a good checkpoint."""
    run = tmp_path / "run"
    options = (
        "--optim.lr-g",
        1e30,
        "--train.nonfinite-limit",
        3,
        "--train.epochs",
        9,
        "--checkpoint.interval-steps",
        1,
    )
    stopped = cli_ranks(2, "train", "--data.shards", shards, *SMALL, *options, "--out", run)
    assert stopped.returncode == 2
    (sentence,) = [line for line in stopped.stderr.splitlines() if line.startswith("error")]  # once, not on each rank
    assert "not finite 3 times in a row; last good checkpoint: " in sentence
    good = Path(sentence.split("last good checkpoint: ")[1].split(";")[0])
    records = [r for r in read_metrics(run) if r["kind"] == "nonfinite"]
    assert len(records) == 3
    assert good.name == f"step-{records[0]['step'] - 1:08d}"  # newer ones hold skipped steps
    assert good.is_dir()
    for record in records:
        named = [key for keys in record["keys"].values() for key in keys]
        assert len(set(named)) == len(named) == 4
        assert set(record["keys"]) == {"0", "1"}
        assert "loss/g" in record["terms"]
    assert {where.split(" of the ")[1] for where in records[0]["first"].values()} == {"generator"}
    assert f"first in rank 0: {records[0]['first']['0']}" in sentence
    assert status(run)["state"] == "failed"
    again = cli_ranks(2, "train", "--data.shards", shards, *SMALL, *options, "--out", run)
    assert re.search(
        r"values that are not finite.* Remove \S+step-\d+ to go on from the checkpoint before it", again.stderr
    )


def test_a_run_that_goes_on_among_bad_steps_names_them_again(tmp_path: Path, cli: Run, shards: Path) -> None:
    options = ("--loss.scale", 1e38, "--train.nonfinite-limit", 3, "--checkpoint.interval-steps", 1)
    for _ in range(2):
        done = cli("train", "--data.shards", shards, *SMALL, *options, "--out", tmp_path / "run")
        assert done.returncode == 2
        assert re.search("the first time it was [a-z].*; metrics.jsonl names the pairs", done.stderr), done.stderr
    assert "resumed from" in done.stdout


def test_a_rank_without_one_good_pair_goes_on(tmp_path: Path, cli_ranks: Run, shards: Path) -> None:
    """13 pairs, batch 2 on two ranks: a rank whose only pair is damaged takes part with an empty page."""
    damaged = with_a_flipped_bit(shards, tmp_path / "shards", "train-000001.tar")
    options = ("--data.batch-size", 2, "--norm", "none", "--train.epochs", 2, "--data.skip-bad", 2)
    options += ("--data.workers", 1, "--data.no-shuffle")
    done = cli_ranks(2, "train", "--data.shards", damaged, *SMALL, *options, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    records = [r for r in read_metrics(tmp_path / "run") if r["kind"] == "train"]
    assert records[-1]["skipped/bad"] == 2  # the same pair in either epoch


def test_accumulating_gives_the_same_run(tmp_path: Path, cli: Run, shards: Path) -> None:
    found = []
    for parts in (1, 2):
        run = tmp_path / str(parts)
        options = ("--norm", "none", "--generator.dropout", 0, "--train.precision", "fp64", "--train.epochs", 1)
        done = cli("train", "--data.shards", shards, *SMALL, *options, "--train.accumulate", parts, "--out", run)
        assert done.returncode == 0, done.stderr
        found.append(losses(run))
    assert len(found[0]) == STEPS
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-7)


def test_the_papers_preset(tmp_path: Path, cli: Run, shards: Path) -> None:
    run = tmp_path / "run"
    done = cli("train", "--config", "paper", "--data.shards", shards, *TINY, "--train.epochs", 2, "--out", run)
    assert done.returncode == 0, done.stderr
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["data"]["shuffle"] is False
    assert config["conditional"]["mode"] == "paper"
    assert [r["train_d"] for r in read_metrics(run) if r["kind"] == "lock"] == [True, False]


def test_two_ranks_train_stop_at_one_and_agree(tmp_path: Path, cli_ranks: Run, shards: Path) -> None:
    run = tmp_path / "run"
    options = ("train", "--data.shards", shards, *SMALL, "--out", run, "--expect-world-size", 2)
    first = launch(2, *options, "--train.epochs", 1)
    assert first.returncode == 0, first.stderr
    assert losses(run)[-1][0] == STEPS
    second = cli_ranks(2, *options, "--train.epochs", 2)
    assert second.returncode == 0, second.stderr
    assert "resumed from" in second.stdout
    assert status(run)["step"] == 2 * STEPS
    assert "Warning" not in first.stderr + second.stderr
    newest = run / "checkpoints" / f"step-{2 * STEPS:08d}" / "generator.safetensors"
    assert all(v.size for v in load_file(newest).values())
    odd = cli_ranks(2, *options, "--data.batch-size", 5, "--out", tmp_path / "odd")
    assert odd.returncode != 0
    assert "does not divide by 2 ranks; use 6 or 4" in odd.stderr


def test_a_single_pair_trains_to_the_end(tmp_path: Path, cli: Run) -> None:
    source = write_pairs(tmp_path / "one", 1, 0, size=128)
    assert cli("pack", source, "--out", tmp_path / "shards", "--size", 128).returncode == 0
    options = ("--data.shards", tmp_path / "shards", *SMALL, "--data.batch-size", 1, "--train.epochs", 1)
    done = cli("train", *options, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert status(tmp_path / "run")["state"] == "finished"
