"""All ranks take the same decisions and keep equal weights, although their own losses differ.

The children run the real training loop on tiny data with losses that the test dictates, each rank's on its own side of
every threshold. The negative control decides from a rank's own losses: the same check must then fail.
"""

import hashlib
import os
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forks import shrink
from support.ranked import Child, Result, run, start
from torch import Tensor

from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config
from dist_sketch.core.ranks import Ranks
from dist_sketch.tracking.tracker import read_metrics
from dist_sketch.training import loop, policy, step_log
from dist_sketch.training import run as run_module
from dist_sketch.training import step as stepping

# Mean losses (D, G) over all ranks, by step; a rank's own are SPREAD below to SPREAD above.
SPREAD = 0.9
PHASES: tuple[tuple[int, float, float], ...] = (
    (6, 1.0, 1.0),  # a draw: both train, but for the timer
    (6, 0.2, 2.0),  # D's loss below its threshold while G's grows: D locked
    (5, 1.2, 1.0),  # back beyond threshold x hysteresis: opened
    (6, 3.0, 1.0),  # above g_threshold: G locked
    (5, 1.0, 1.0),  # below g_threshold / hysteresis: opened
    (8, 0.2, 3.0),  # D locked again; the longest lock opens it
)
MEANS = [(d, g * 1.2**n) for steps, d, g in PHASES for n in range(steps)]
POISONED = {4: "nan", 11: "inf", 19: "-inf", 27: "nan"}  # the last rank's lines in these steps
POLICY = cfg.ConditionalConfig(
    timer=3,
    timer_unit="steps",
    loss_threshold=0.5,
    g_threshold=2.0,
    growth=0.1,
    short_steps=2,
    long_steps=6,
    longest_lock_steps=4,
)


def own_losses(step: int, rank: int, world: int) -> tuple[float, float]:
    """(D, G) of this rank. On the first ranks D's are below and G's above the means, on the last ranks vice versa."""
    d, g = MEANS[step]
    side = SPREAD * (2 * rank / (world - 1) - 1)
    return d * (1 + side), g * (1 - side)


class Dictated(stepping.Step):
    """A step whose measured losses are the test's, unless they are not finite; `seen` gets a hash of its weights."""

    seen: Result

    def _reduce(self, measures: stepping.Measures, *rest: Any) -> stepping.Measured:
        d, g = own_losses(self.steps, self.ranks.rank, self.ranks.world_size)
        for name, value in {"loss/d_real": d / 2, "loss/d_fake": d / 2, "loss/g": g}.items():
            measures.pairs[name] = [torch.where(v.isfinite(), value, v) for v in measures.pairs[name]]
        return super()._reduce(measures, *rest)

    def __call__(self, line: Tensor, *rest: Any, **more: Any) -> stepping.Measured:
        if self.ranks.rank == self.ranks.world_size - 1 and self.steps in POISONED:
            line = line.clone()
            line[0, 0, 3, 3] = float(POISONED[self.steps])
        measured = super().__call__(line, *rest, **more)
        self.seen["weights"].append(self._hash())
        self.seen["nonfinite"].append(int(measured.reduced[stepping.NAMES.index("nonfinite")]))
        return measured

    def _hash(self) -> str:
        sha = hashlib.sha256()
        for net in (self.g, self.d):
            for p in net.parameters():
                sha.update(p.detach().contiguous().numpy().tobytes())
        return sha.hexdigest()


def trained(ranks: Ranks) -> Result:
    """The real loop; what this rank decided in each step, and a hash of its weights after it."""
    seen: Result = {"decisions": [], "weights": [], "nonfinite": []}
    plain_decide = policy.decide

    def decide(*state: Any, **place: Any) -> policy.Decision:
        seen["decisions"].append(plain_decide(*state, **place))
        return seen["decisions"][-1]

    Dictated.seen = seen
    loop.decide, run_module.Step = decide, Dictated  # type: ignore[misc]
    shrink()  # who decides what does not depend on the networks
    base = Config(conditional=POLICY, norm="none")
    config = replace(
        base,
        data=replace(base.data, shards=Path(os.environ["SHARDS"]), batch_size=8, workers=0),
        train=replace(
            base.train, epochs=len(MEANS), precision="no", validate_interval_epochs=0, sample_interval_epochs=0
        ),
        track=replace(base.track, wandb="off", log_interval_steps=1),
    )
    seen["code"] = loop.train(config, Path(os.environ["RUN"]))
    seen["decisions"] = [tuple(d) for d in seen["decisions"]]
    return seen


def child_agrees(ranks: Ranks) -> Result:
    return trained(ranks)


def child_decides_for_itself(ranks: Ranks) -> Result:
    """The fault that the reduced vector prevents: each rank's policy reads its own losses."""
    plain = step_log.read
    count = 0

    def read(vector: Tensor) -> dict[str, float]:
        nonlocal count
        d, g = own_losses(count, ranks.rank, ranks.world_size)
        count += 1
        return plain(vector) | {"loss/d": d, "loss/g": g}

    step_log.read = read
    return trained(ranks)


def assert_ranks_agree(found: list[Result]) -> None:
    for other in found[1:]:
        assert other["decisions"] == found[0]["decisions"]
        assert other["weights"] == found[0]["weights"]
        assert other["nonfinite"] == found[0]["nonfinite"]


def go(world: int, child: Child, shards: Path, folder: Path, **more: Any) -> list[Result]:
    folder.mkdir()
    return run(world, child, folder, SHARDS=str(shards), RUN=str(folder / "run"), **more)


def alone(rank: int, world: int) -> list[policy.Decision]:
    """What a rank would decide from its own losses."""
    state, decisions = policy.PolicyState(), []
    for step in range(len(MEANS)):
        decision = policy.decide(state, POLICY, step=step, epoch=step)
        d, g = own_losses(step, rank, world)
        state = policy.observe(state, POLICY, epoch=step, loss_d=d, loss_g=g, decision=decision)
        decisions.append(decision)
    return decisions


@pytest.mark.parametrize("world", [2, 8])
def test_the_ranks_own_losses_stand_on_different_sides_of_every_threshold(world: int) -> None:
    c = POLICY
    own = [[own_losses(step, rank, world) for step in range(len(MEANS))] for rank in (0, world - 1)]
    for threshold in (c.loss_threshold, c.loss_threshold * c.hysteresis, c.g_threshold, c.g_threshold / c.hysteresis):
        assert any(first[0] < threshold < last[0] for first, last in zip(*own, strict=True)), threshold
    assert alone(0, world) != alone(world - 1, world)


@pytest.mark.parametrize("world", [2, 8])
def test_ranks_decide_and_skip_alike_and_stay_equal(shards: Path, tmp_path: Path, world: int) -> None:
    found = go(world, child_agrees, shards, tmp_path / "run")
    assert_ranks_agree(found)
    decided, weights = found[0]["decisions"], found[0]["weights"]
    assert len(decided) == len(weights) == len(MEANS)
    reasons = {d[2].split(":")[0] for d in decided}
    assert reasons == {"timer", "D locked", "G locked"}
    locks = [(a[2], b[2]) for a, b in pairwise(decided) if a[2] != b[2]]
    assert sum("D locked" in b for _, b in locks) == 2  # closed twice, and opened in between
    assert sum("G locked" in b for _, b in locks) == 1
    # The poisoned steps were skipped on the device, by all ranks, in the same step.
    assert {n for n, count in enumerate(found[0]["nonfinite"]) if count} == set(POISONED)
    for step in POISONED:
        assert weights[step] == weights[step - 1]
    moved = [n for n in range(1, len(MEANS)) if n not in POISONED]
    assert all(weights[n] != weights[n - 1] for n in moved)


def test_a_decision_of_a_rank_s_own_would_be_noticed(shards: Path, tmp_path: Path) -> None:
    """The negative control: if ranks train different networks, they hang, mix gradients, or end in an error."""
    (tmp_path / "run").mkdir()
    env = {"SHARDS": str(shards), "RUN": str(tmp_path / "run" / "run")}
    try:
        ended = start(2, child_decides_for_itself, tmp_path / "run", **env)
    except subprocess.TimeoutExpired:
        ended = []
    assert read_metrics(tmp_path / "run" / "run")  # it hung or ended in training, not before
    if not ended or any(process.returncode for process in ended):
        return
    found = [torch.load(tmp_path / "run" / f"child_decides_for_itself-{rank}.pt") for rank in range(2)]
    with pytest.raises(AssertionError):
        assert_ranks_agree(found)
