"""What a run of several ranks tells about its faults: who hangs, who is slow, whose weights differ, what is NaN."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL
from support import hooks
from support.forks import Forks, wait_until

from dist_sketch.core.hang_watch import FILE, HangWatch, record_collectives
from dist_sketch.slurm.rank_logs import describe
from dist_sketch.tracking.tracker import read_metrics
from dist_sketch.tracking.wandb_file import records


def hangs(prefix: str, *places: str) -> None:
    """Hook: as `hooks.pauses`."""
    hooks.pauses(prefix, *places)


def changes_a_weight(step: str) -> None:
    """Hook: after this step one of the discriminator's weights is another one, by one bit."""
    from dist_sketch.training import loop

    train_batch = loop.train_batch

    def changing(run: Any, batch: Any) -> None:
        train_batch(run, batch)
        if run.state.step == int(step):
            next(run.step.d.parameters()).data[0, 0, 0, 0] *= 1 + 2**-23

    loop.train_batch = changing


def is_slow(seconds: str) -> None:
    """Hook: each step takes longer by `seconds`, and who is slow is looked at twice a second."""
    from dist_sketch.tracking import speed
    from dist_sketch.training import loop

    train_batch, speed.SLOW_FOR_S = loop.train_batch, 0.5

    def slower(run: Any, batch: Any) -> None:
        time.sleep(float(seconds))
        train_batch(run, batch)

    loop.train_batch = slower


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks("training.test_told", tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


PLACES = {
    "in training": (2, 1, "training.loop:train_batch:2", "step 2"),
    "in training, the first": (2, 0, "training.loop:train_batch:2", "step 2"),
    "in validation": (4, 2, "training.validation:Validation.scores:1", "the validation after step 1"),
    "while it saves": (2, 1, "model.checkpoint:save:1", "the checkpoint of step 2"),
    "in calibration": (2, 0, "training.closing:calibrated:1", "the choice of the noise removal"),
}


@pytest.mark.parametrize(
    ("name", "stopped"), [*((name, True) for name in PLACES), ("in training", False), ("in calibration", False)]
)
def test_a_rank_that_hangs_is_named(tmp_path: Path, forks: Forks, shards: Path, name: str, stopped: bool) -> None:
    world, rank, place, doing = PLACES[name]
    run, mark = tmp_path / "run", tmp_path / "rank.0"
    options = (
        "--train.epochs",
        1,
        "--train.validate-limit",
        2,
        "--train.hang-dump-s",
        2,
        "--data.batch-size",
        2 * world,
    )
    pids = forks.start_ranks(
        world,
        *("train", "--data.shards", shards, *SMALL, *options, "--out", run),
        hooks={r: ("hangs", tmp_path / "rank", *[place] * (r == rank)) for r in range(world)},
    )

    def wait_for(file: Path) -> None:
        wait_until(lambda: file.exists() or any(forks.poll(pid) is not None for pid in pids), f"{file.name}")
        assert file.exists(), [forks.printed(pid) for pid in pids]

    wait_for(mark)
    if stopped:
        os.kill(pids[rank], signal.SIGSTOP)
    told = run / FILE
    wait_for(told)
    text = json.loads(told.read_text())["text"]
    shown = describe(run)
    os.kill(pids[rank], signal.SIGCONT)
    mark.with_name("rank.0.go").touch()
    ended = [forks.wait(pid) for pid in pids]
    assert [e.code for e in ended] == [0] * world, ended
    assert text in shown
    assert re.match(rf"no progress for \d+ s in: {doing}; ", text), text
    if stopped:
        assert re.search(rf"rank {rank}( on \S+)? does not answer \(.*\); its last word: [a-z]", text), text
    else:
        assert "does not answer" not in text
        assert "the stacks in the logs of all ranks" in text  # all have come
    assert not told.exists()  # it went on
    for r, each in enumerate(ended):
        if r != rank or not stopped:
            assert f"rank {r} on " in each.err
            assert "File " in each.err  # a line of a Python stack
            assert "goes on: " in each.err


@pytest.mark.parametrize(("interval", "found_at", "equal_at"), [(1, 3, 2), (0, 4, 2)])
def test_unequal_weights_stop_the_run(
    tmp_path: Path, forks: Forks, shards: Path, interval: int, found_at: int, equal_at: int
) -> None:
    """SMALL saves every two steps, which is when the weights are compared by default."""
    run = tmp_path / "run"
    options = ("--train.epochs", 4, "--train.check-interval-steps", interval)
    hook = {1: ("changes_a_weight", 3)}
    log = ("--track.wandb", "offline") if interval else ()
    command = ("train", "--data.shards", shards, *SMALL, *options, *log, "--out", run)
    ended = forks.run_ranks(2, *command, hooks=hook, WANDB_MODE="offline")
    assert [e.code for e in ended] == [2, 2], ended
    for file in run.glob("wandb/offline-run-*/*.wandb"):  # the user gets an alert
        assert sum(b"run failed" in r and b"weights differ" in r for _, r in records(file)) == 1
    assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == (interval > 0)
    (error,) = [line for e in ended for line in e.err.splitlines() if line.startswith("error")]
    assert re.search(
        rf"step {found_at}: the ranks' weights differ: discriminator is [0-9a-f]{{16}} on rank 0; [0-9a-f]{{16}} on "
        rf"rank 1; they were last equal at step {equal_at}\.",
        error,
    ), error
    assert [f.name for f in run.glob("checkpoints/step-*")] == ["step-00000002"]  # nothing was saved since
    ended = forks.run_ranks(2, "train", "--data.shards", shards, *SMALL, *options, "--out", run)
    assert [e.code for e in ended] == [0, 0], ended


def test_a_slow_rank_is_named(tmp_path: Path, forks: Forks, shards: Path) -> None:
    run = tmp_path / "run"
    options = ("--train.epochs", 5, "--train.validate-interval-epochs", 0, "--train.sample-interval-epochs", 0)
    hooks = {0: ("is_slow", 0.0), 1: ("is_slow", 0.3)}
    ended = forks.run_ranks(2, "train", "--data.shards", shards, *SMALL, *options, "--out", run, hooks=hooks)
    assert [e.code for e in ended] == [0, 0], ended
    records = read_metrics(run)
    first = next(r for r in records if r["kind"] == "slow")
    assert [s["rank"] for s in first["ranks"]] == [1]
    assert first["ranks"][0]["times"] > 1.2
    assert re.search(r"warning: the ranks wait: rank 1 on \S+ takes \d+\.\d\d times as long as", ended[0].out)
    last = [r for r in records if r["kind"] == "train"][-1]
    assert (last["speed/slowest_rank"], last["speed/slowest_times"] > 1.2) == (1, True)
    assert "slow: rank 1 on " in describe(run)


def test_one_process_is_watched_too_and_nccl_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_NCCL_DEBUG_INFO_PIPE_FILE", str(tmp_path / "nccl-"))
    os.mkfifo(tmp_path / "nccl-0.pipe")
    pipe = os.open(tmp_path / "nccl-0.pipe", os.O_RDONLY | os.O_NONBLOCK)
    watch = HangWatch(tmp_path, 0, 1, 0.2)
    watch.note("step 7")
    wait_until((tmp_path / FILE).exists, "the report")
    assert re.match(r"no progress for \d+ s in: step 7$", json.loads((tmp_path / FILE).read_text())["text"])
    assert os.read(pipe, 9) == b"1"
    watch.note("step 8")
    watch.close()
    os.close(pipe)
    assert not (tmp_path / FILE).exists()


def test_a_user_s_settings_of_the_flight_recorder_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"):
        monkeypatch.setenv(name, "mine")  # and restores what there was
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "7")
    record_collectives(tmp_path)
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "7"
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / "nccl-")
