"""`checkpoint.choose`: the weights with the best score draw, also after kills and damage and on several ranks.

The networks are tiny (`forks`), and KID is what the test says: lowest at the end of one epoch in the middle; or SCOOT,
which is highest there.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from support.forks import Forks, wait_until

from dist_sketch.core import config as cfg
from dist_sketch.core.config_rules import validate
from dist_sketch.core.errors import UserError
from dist_sketch.core.ranks import Ranks
from dist_sketch.metrics import inception
from dist_sketch.model import checkpoint
from dist_sketch.tracking.tracker import read_metrics
from dist_sketch.training import setup

STEPS, EPOCHS = 3, 4  # an epoch of the 13 pairs of `shards` at batch 4
BEST = 2 * STEPS


def lowest_kid_after(epoch: str) -> None:
    """Hook: KID is the distance to the end of this epoch."""
    from dist_sketch.training import loop, validation
    from dist_sketch.training.progress import ProgressBar
    from dist_sketch.training.run import Run

    finish, now = loop.finish_epoch, [0]

    def finish_epoch(run: Run, progress: ProgressBar) -> None:
        now[0] = run.state.epoch
        finish(run, progress)

    loop.finish_epoch = finish_epoch
    for name in ("_inception", "_features"):  # these take seconds, and no test here needs them
        setattr(validation, name, lambda *_: "a stand-in")
    validation._distances = lambda _: {"kid": 0.25 + abs(now[0] - int(epoch))}


def highest_scoot_after(epoch: str) -> None:
    """Hook: SCOOT falls with the distance to the end of this epoch; FID's network is on no disk."""
    from dist_sketch.training import loop, validation
    from dist_sketch.training.progress import ProgressBar
    from dist_sketch.training.run import Run

    finish, now = loop.finish_epoch, [0]

    def finish_epoch(run: Run, progress: ProgressBar) -> None:
        now[0] = run.state.epoch
        finish(run, progress)

    loop.finish_epoch = finish_epoch
    inception.find = lambda *_: None
    validation.EACH["scoot"] = lambda *_: 0.5 - 0.1 * abs(now[0] - int(epoch))


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks("test_choose", tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def options(shards: Path) -> tuple[Any, ...]:
    validated = ("--train.validate-fid", "--train.validate-interval-epochs", 1, "--train.sample-interval-epochs", 0)
    kept = ("--checkpoint.choose", "kid", "--checkpoint.keep", 1)
    return ("train", "--data.shards", shards, *TINY, *validated, *kept, "--train.epochs", EPOCHS)


HOOK = ("lowest_kid_after", 1)


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def what_draws(run: Path) -> tuple[str, bytes]:
    folder = checkpoint.chosen(run)
    assert folder is not None
    return folder.name, (folder / "generator.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, forks: Forks, options: tuple[Any, ...]) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    done = forks.run(*options, "--out", run, hook=HOOK)
    assert done.code == 0, done.err
    return run


def test_the_best_in_the_middle_draws_and_is_kept_beside_the_newest(undisturbed: Path) -> None:
    assert status(undisturbed)["draws"] == BEST
    assert what_draws(undisturbed)[0] == f"step-{BEST:08d}"
    kept = {p.name for p in (undisturbed / "checkpoints").iterdir()}
    assert kept == {f"step-{BEST:08d}", f"step-{EPOCHS * STEPS:08d}"}


@pytest.mark.parametrize("at", [BEST, BEST + 2, 3 * STEPS + 1])
def test_killed_at_any_time_the_same_weights_draw(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], undisturbed: Path, at: int
) -> None:
    run = tmp_path / "run"
    pid = forks.start(*options, "--out", run, hook=HOOK)
    step = at - at % 2 if at != BEST else BEST  # checkpoints are saved every second step, and with the best
    wait_until(lambda: (run / f"checkpoints/step-{step:08d}").exists() or forks.poll(pid) is not None, f"step {step}")
    if forks.poll(pid) is None:
        os.kill(pid, signal.SIGKILL)
    forks.wait(pid)
    again = forks.run(*options, "--out", run, hook=HOOK)
    assert again.code == 0, again.err
    assert status(run)["draws"] == BEST
    assert what_draws(run) == what_draws(undisturbed)


def test_a_best_that_is_damaged_is_no_bar_for_those_to_come(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], undisturbed: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    weights = run / f"checkpoints/step-{BEST:08d}/generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    more = forks.run(*options, "--train.epochs", EPOCHS + 2, "--out", run, hook=HOOK)
    assert more.code == 0, more.err
    assert status(run)["draws"] == (EPOCHS + 1) * STEPS  # the better one of the two new ones
    assert what_draws(run)[0] == f"step-{(EPOCHS + 1) * STEPS:08d}"


def test_ranks_choose_as_one(tmp_path: Path, forks: Forks, options: tuple[Any, ...]) -> None:
    run = tmp_path / "run"
    for ended in forks.run_ranks(2, *options, "--out", run, hooks={0: HOOK, 1: ("lowest_kid_after", 2)}):
        assert ended.code == 0, ended.err
    assert status(run)["draws"] == BEST  # rank 0's, though rank 1 would say another
    kids = [r["val/kid"] for r in read_metrics(run) if r["kind"] == "val"]
    assert kids == [1.25, 0.25, 1.25, 2.25]


def test_the_highest_scoot_draws_and_needs_no_inception_weights(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...]
) -> None:
    run = tmp_path / "run"
    more = ("--checkpoint.choose", "scoot", "--train.epochs", 3)
    done = forks.run(*options, *more, "--out", run, hook=("highest_scoot_after", 1))
    assert done.code == 0, done.err
    assert status(run)["draws"] == BEST
    assert what_draws(run)[0] == f"step-{BEST:08d}"
    scored = [r for r in read_metrics(run) if r["kind"] == "val"]
    assert [r["val/scoot"] for r in scored] == pytest.approx([0.4, 0.5, 0.4])
    assert not any("val/kid" in r for r in scored)


def test_another_choice_is_another_run(forks: Forks, options: tuple[Any, ...], undisturbed: Path) -> None:
    refused = forks.run(*options, "--checkpoint.choose", "last", "--out", undisturbed, hook=HOOK)
    assert refused.code == 2
    assert "checkpoint.choose: kid -> last" in refused.err


def test_without_the_weights_of_fid_s_network_nothing_is_begun(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = cfg.load("portrait")
    config = replace(config, data=replace(config.data, shards=shards))
    assert setup.resolve(config, Ranks())["pairs"] == 13
    monkeypatch.setattr(inception, "find", lambda: None)
    with pytest.raises(UserError, match=r"checkpoint.choose = 'kid': no weights of FID's network on this machine"):
        setup.resolve(config, Ranks())
    by_scoot = replace(config, checkpoint=replace(config.checkpoint, choose="scoot"))
    assert setup.resolve(by_scoot, Ranks())["pairs"] == 13


@pytest.mark.parametrize(
    ("choose", "change", "message"),
    [
        ("scoot", {"validate_interval_epochs": 0}, "'scoot': needs train.validate_interval_epochs above 0"),
        ("kid", {"validate_interval_epochs": 0}, "'kid': needs train.validate_interval_epochs above 0"),
        ("kid", {"validate_fid": False}, "'kid': needs train.validate_fid"),
        (
            "kid",
            {"validate_limit": 1},
            r"'kid': needs 2 validation pair\(s\) at least; .* and train.validate_limit is 1",
        ),
        ("scoot", {"validate_limit": 1, "validate_fid": False}, None),
        ("last", {"validate_interval_epochs": 0, "validate_fid": False}, None),
    ],
)
def test_a_choice_needs_its_validation(shards: Path, choose: Any, change: dict[str, Any], message: str | None) -> None:
    config = cfg.load("portrait")
    config = replace(
        config,
        data=replace(config.data, shards=shards),
        checkpoint=replace(config.checkpoint, choose=choose),
        train=replace(config.train, **change),
    )
    if message is None:
        assert setup.resolve(validate(config), Ranks())["pairs"] == 13
    else:
        with pytest.raises(UserError, match=f"^checkpoint.choose = {message}"):
            setup.resolve(validate(config), Ranks())
