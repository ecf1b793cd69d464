"""Measures of a log whose values are not all finite."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_sketch.experiments import measures, page
from dist_sketch.experiments.presets import Claim
from dist_sketch.metrics.definitions import OPTIMISTIC


def write(run: Path, losses: list[float | None]) -> None:
    run.mkdir(exist_ok=True)
    records = [{"kind": "epoch", "step": i, "loss/d": loss} for i, loss in enumerate(losses)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.mark.parametrize(
    ("losses", "mean"),
    [
        ([1.0, 2.0, 3.0], 2.5),  # two epochs at least
        ([None, 2.0, 3.0], 2.5),  # it recovered
        ([1.0, 2.0, None], None),  # not 1.5: those are the epochs before its losses were lost
        ([1.0, None, 3.0], None),
        ([None] * 3, None),
        ([], None),
    ],
)
def test_an_epoch_without_a_finite_loss_is_not_replaced_by_an_earlier_one(
    losses: list[float | None], mean: float | None, tmp_path: Path
) -> None:
    write(tmp_path, losses)
    assert measures.measure("loss_d", tmp_path, tmp_path, "raw") == mean


def test_a_verdict_names_the_seeds_that_it_does_without(tmp_path: Path) -> None:
    runs = []
    for seed, losses in enumerate(([1.0, 1.0], [1.1, 1.1], [1.0, None])):
        folder = tmp_path / f"s{seed}"
        write(folder, losses)
        config = SimpleNamespace(train=SimpleNamespace(seed=seed))
        runs.append(SimpleNamespace(folder=folder, output=folder, name="a", config=config, drawn=lambda: True))
    rows = {"a": SimpleNamespace(label="CT", noise_removal=False)}
    claim = Claim(says="D learns", measure="loss_d", rows=["a"], expect="below", limit=2.0)
    plan: Any = SimpleNamespace(
        seeds=3, claims=[claim], preset=SimpleNamespace(rows=rows), run_of=lambda row, seed: runs[seed]
    )
    ((_, word, measured),) = page._claims(plan).rows
    assert word == "held"
    assert measured.endswith("below 2 (no value: CT, seed 2)")


def test_scores_of_pairs_that_chose_the_weights_are_marked() -> None:
    scores: dict[str, Any] = {"n": 3, "baselines": {}}
    result: Any = SimpleNamespace(name="a-s0", scores=scores, infer={"chosen_on_these": True})
    part: Any = SimpleNamespace(scores=[])
    assert page._context(part, [result]) == [f"a-s0: {OPTIMISTIC}"]
    result.infer = {}
    assert page._context(part, [result]) == []
