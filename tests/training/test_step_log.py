"""The place of a run, which a checkpoint keeps: means of an epoch, a foreign place, whether a finished run goes on."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dist_sketch.core.config import Config, TrainConfig
from dist_sketch.core.errors import UserError
from dist_sketch.training import setup
from dist_sketch.training.step_log import RunState

FILE = Path("run/checkpoints/step-00000023/state.pt")
PLACE = asdict(RunState(step=23, epoch=2, batch=3, sums={"loss/d": 3.0}, counts={"loss/d": 2}))


def restored(place: Any) -> RunState:
    return RunState.restore(place, FILE, steps_an_epoch=10, step=23)


def test_a_place_is_restored_as_it_was_saved() -> None:
    assert asdict(restored(PLACE)) == PLACE


@pytest.mark.parametrize("total", [3.0, math.nan, math.inf])
def test_a_place_of_an_older_version_is_restored(total: float) -> None:
    older = {k: v for k, v in PLACE.items() if k not in ("counts", "unlogged", "best_score")}
    state = restored(older | {"sums": {"loss/d": total, "loss/g": 6.0}, "locked_d": 7, "best_kid": 0.25})
    assert (state.unlogged, state.locked_d, state.best_score) == (0, 0, 0.25)
    assert state.epoch_means()["loss/g"] == 2.0
    assert state.epoch_means().get("loss/d", 1.0) == 1.0


@pytest.mark.parametrize(("choose", "best"), [("kid", 2), ("scoot", 3), ("last", None)])
def test_the_best_validation_is_remembered(choose: str, best: int | None) -> None:
    state = RunState()
    for step, (kid, scoot) in enumerate([(0.3, 0.4), (-0.1, 0.2), (0.2, 0.5), (-0.1, 0.5)], 1):
        state.step = step
        state.note_scores({"val/kid": kid, "val/scoot": scoot}, choose)
    state.note_scores({"val/ssim": 1.0, "seen/kid": -1.0, "seen/scoot": 1.0}, choose)  # nothing to choose by
    assert state.best_step == best


@pytest.mark.parametrize(
    "change",
    [
        *({"batch": b} for b in (10**6, 10, -1, 4, "3", None, True, 3.0)),
        *({"epoch": e} for e in (-1, 3, 10**9)),
        *({"step": s} for s in (-23, 24, 2**70)),
        *({"sums": s} for s in ([], None, {"loss/d": "1"}, {1: 1.0})),
        *({"policy": p} for p in (None, 3, {"loss_d": "x"}, {"unknown": 1})),
        {"best_score": math.nan},
        {"unknown": 1},
        {"unlogged": -1},
        {"counts": {"loss/d": -0.5}},
    ],
)
def test_a_foreign_place_is_a_sentence(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^run/checkpoints/step-00000023/state\.pt: .*place"):
        restored(PLACE | change)


@pytest.mark.parametrize("place", [None, 3, [], "x", {}])
def test_what_is_no_place_is_a_sentence(place: Any) -> None:
    with pytest.raises(UserError, match=r"state\.pt: place"):
        restored(place)


def test_means_are_of_finite_values_and_say_of_how_many() -> None:
    state = RunState(sums={"loss/d": 3.0, "loss/g": 0.0}, counts={"loss/d": 2, "loss/g": 0})
    assert state.epoch_means() == {"loss/d": 1.5, "loss/g": None, "finite_steps/d": 2, "finite_steps/g": 0}


@pytest.mark.parametrize(
    ("state", "trained", "epochs", "done"),
    [("finished", 8, 50, False), ("finished", 8, 8, True), ("finished", 2, 8, False), ("stopped", 8, 8, False)],
)
def test_a_run_is_finished_when_it_has_as_many_epochs(state: str, trained: int, epochs: int, done: bool) -> None:
    previous = {"status": {"state": state, "epochs": trained}, "epochs": 8}
    assert setup.finished(previous, Config(train=TrainConfig(epochs=epochs))) == done
    assert not setup.finished(previous | {"status": {}}, Config(train=TrainConfig(epochs=epochs)))
