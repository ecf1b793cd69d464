"""Steps as CUDA graphs against eager steps, and gradients that several processes average on GPUs.

Where it is possible a test also runs on the CPU, where all steps are eager, so that its own code is tried everywhere.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import forks, python_path
from support.gpu import DECISIONS, DEVICES, GPU, all_weights, build, pairs, ranks
from torch import Tensor

from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config, OptimConfig
from dist_sketch.core.config_rules import validate
from dist_sketch.core.gradients import FlatGradients
from dist_sketch.core.ranks import Ranks
from dist_sketch.model import checkpoint
from dist_sketch.training.measures import NAMES, read
from dist_sketch.training.policy import BOTH, Decision
from dist_sketch.training.step import Step

MIXED = (DECISIONS[0], DECISIONS[2], DECISIONS[0], DECISIONS[1])  # in turn
STEPS = 50
NAN_STEPS = (12, 21, 23)  # one for each decision
BAD_STEP, STOP_STEP = 30, 40
SAVED_AFTER = 26
FEW = 14  # steps of several processes, NaN included
# Rounding in float64 has become 1e-13 after fifty steps at the rates of `small`; without such small rates Adam makes
# more and more of it.
TOLERANCE = 1e-9
LOOSE = ("d/real", "d/fake")  # they are only looked at: their sigmoid is taken in float32


def small(preset: str | None, **generator: float) -> Config:
    """Networks of a preset with few channels, and rates at which rounding stays rounding for fifty steps."""
    config = cfg.load(preset)
    narrow = replace(config.generator, width=8, **generator)
    data, optim = replace(config.data, batch_size=4), OptimConfig(lr_g=1e-5, lr_d=1e-5, decay=0.5)
    return validate(replace(config, data=data, generator=narrow, optim=optim))


# ---------------------------------------------------------------- captured against eager


def fifty(config: Config, on: Ranks) -> Iterator[tuple[int, tuple[Tensor, Tensor, Decision], dict[str, Any]]]:
    """The arguments of STEPS steps of mixed locks: with NaN, a pair that could not be read, and a request to stop."""
    batches = [pairs(config, 64, on.device, first=4 * i) for i in range(3)]
    for n in range(STEPS):
        line, sketch = batches[n % 3]
        good = torch.ones(len(line), dtype=torch.bool, device=on.device)
        if n in NAN_STEPS:
            line = line.clone()
            line[0, 0, 5, 5] = torch.nan
        good[1] = n != BAD_STEP
        yield n, (line, sketch, MIXED[n % 4]), {"bad": int(n == BAD_STEP), "stop": n == STOP_STEP, "good": good}


def train_fifty(
    config: Config, on: Ranks, precision: str, *, capture: bool, interrupted: Path | None = None
) -> tuple[Tensor, Step]:
    """What each step measured, (STEPS, len(NAMES)), and the trained networks.

    Args:
        interrupted: folder for a checkpoint, from which another `Step` goes on after SAVED_AFTER steps.
    """
    step, rows = build(config, on, precision, capture=capture), []
    for n, arguments, more in fifty(config, on):
        if interrupted is not None and n == SAVED_AFTER:
            checkpoint.save(interrupted, n, step.modules(), {"step": step.state_dict()}, on, keep=1)
            step = build(config, on, precision, capture=capture)
            folder = checkpoint.find(interrupted)
            assert folder is not None
            step.load_state_dict(checkpoint.load(folder, step.modules(), on)["step"])
        rows.append(step(*arguments, **more).reduced)
    return torch.stack(rows).cpu(), step


def assert_alike(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    """Compares what two runs measured, (steps, len(NAMES)), by relative difference."""
    for name, a, b in zip(NAMES, ours.T, theirs.T, strict=True):
        rtol = max(tolerance, 1e-5) if name in LOOSE and tolerance else tolerance
        torch.testing.assert_close(a, b, rtol=rtol, atol=0.0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("device", "preset"),
    [("cpu", None), pytest.param("cuda", None, marks=GPU), pytest.param("cuda", "portrait", marks=GPU)],
)
def test_fifty_captured_steps_are_the_eager_ones(device: str, preset: str | None, tmp_path: Path) -> None:
    config, on, on_cpu = small(preset, dropout=0.0, noise=0, ema=0.9), ranks(device), device == "cpu"
    precision, tolerance = ("no", 0.0) if on_cpu else ("fp64", TOLERANCE)  # on the CPU bit for bit, and quick
    eager, step = train_fifty(config, on, precision, capture=False)
    expected = all_weights(step)
    values = [read(row) for row in eager]
    assert [n for n, v in enumerate(values) if v["nonfinite"]] == list(NAN_STEPS)
    assert [n for n, v in enumerate(values) if v["stop"]] == [STOP_STEP]
    assert [n for n, v in enumerate(values) if v["bad"]] == [BAD_STEP]
    assert [v["pairs"] for v in values] == [4 - (n == BAD_STEP) for n in range(STEPS)]
    assert expected.isfinite().all()
    for interrupted in (tmp_path,) if on_cpu else (None, tmp_path):
        rows, step = train_fifty(config, on, precision, capture=True, interrupted=interrupted)
        assert step.way.startswith("eager") == on_cpu, step.way
        assert_alike(rows, eager, tolerance)
        assert (all_weights(step) - expected).abs().max() <= tolerance


@DEVICES
def test_each_step_draws_new_random_numbers_those_of_the_eager_step(device: str) -> None:
    """Neither dropout nor noise may be recorded with the graph."""
    config = small("portrait", dropout=0.5)
    config = replace(config, optim=OptimConfig(lr_g=1e-12, lr_d=1e-12))  # nothing else changes
    on, found = ranks(device), {}
    for capture in (False, True):
        step = build(config, on, "fp64", capture=capture)
        line, sketch = pairs(config, 64, on.device)
        torch.manual_seed(1)
        rows = [read(step(line, sketch, BOTH, bad=0, stop=False).reduced)["loss/g_l1"] for _ in range(6)]
        assert len(set(rows)) == 6
        found[capture] = rows
    assert found[True] == pytest.approx(found[False], rel=1e-6)


# ---------------------------------------------------------------- several processes


def members(function: str, places: list[dict[str, str]], out: Path, **env: str) -> list[dict[str, Tensor]]:
    """What each member, a new process, returned; all are killed if one hangs."""
    files = [out / f"{function}-{i}.pt" for i in range(len(places))]
    started = []
    for place, file in zip(places, files, strict=True):
        code = f"import sys, torch, test_gpu_graphs; torch.save(test_gpu_graphs.{function}(), sys.argv[1])"
        variables = {**os.environ, **place, **env, "PYTHONPATH": python_path()}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, file], stdout=-1, stderr=subprocess.STDOUT, text=True, env=variables
            )
        )
    try:
        for process in started:
            text, _ = process.communicate(timeout=120)
            assert process.returncode == 0, text
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [torch.load(file) for file in files]


def alone_in_an_nccl_group() -> dict[str, Tensor]:
    """A member: some steps, captured and eager, whose gradients and measurements go through NCCL's all-reduce.

    The sum over a group of one is the value itself. `FlatGradients` is told that there are two ranks, so it halves it.
    """
    found = {}
    config = small("portrait", noise=0)
    with Ranks(expect_world_size=1) as on:
        assert dist.get_backend() == "nccl"
        two = SimpleNamespace(world_size=2, group_of=on.group_of)
        plain, ways = on.sum, []

        def reduce(values: Tensor) -> Tensor:
            dist.all_reduce(values)
            return values

        for name, capture in (("bare", False), ("eager", False), ("captured", True)):
            step = build(config, on, "fp64", capture=capture)
            if name != "bare":
                on.sum = reduce  # type: ignore[method-assign]
                for learner in (step.learner_g, step.learner_d):
                    learner.gradients = FlatGradients(learner.module.parameters(), two)
            rows = [step(*a, **more).reduced for n, a, more in fifty(config, on) if n < FEW]
            found[name] = torch.stack(rows).cpu()
            ways.append(step.way)
            on.sum = plain  # type: ignore[method-assign]
            del step
            gc.collect()  # NCCL's group cannot be closed while a graph holds its collectives
    assert [way.startswith("eager") for way in ways] == [True, True, False], ways
    return found


@GPU
def test_a_step_in_an_nccl_group_is_recorded(tmp_path: Path) -> None:
    """NCCL does nothing for a group of one, so this shows that it does not disturb; two cards show the rest."""
    (found,) = members("alone_in_an_nccl_group", forks.places(1), tmp_path, ACCELERATE_USE_CPU="false")
    assert_alike(found["captured"], found["eager"], TOLERANCE)
    norm = NAMES.index("norm/d")
    assert found["eager"][0, norm].item() == pytest.approx(found["bare"][0, norm].item() / 2, rel=TOLERANCE)


def one_of_two_cards() -> dict[str, Tensor]:
    """A member: one of two ranks on a card each. It leaves the group while its graphs hold NCCL's all-reduce."""
    config, found = small("portrait", noise=0, ema=0.9), {}
    with Ranks(expect_world_size=2) as on:
        assert dist.get_backend() == "nccl"
        mine = list(on.share(4))
        for name, capture in (("eager", False), ("captured", True)):
            step, rows = build(config, on, "fp64", capture=capture), []
            for n, (line, sketch, decision), more in fifty(config, on):
                more["good"] = more["good"][mine]
                if n < FEW:
                    rows.append(step(line[mine], sketch[mine], decision, **more).reduced)
            assert step.way.startswith("eager") != capture, step.way
            found |= {name: torch.stack(rows).cpu(), f"{name} weights": all_weights(step)}
    return found


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_graphs_on_two_cards_average_over_nccl(tmp_path: Path) -> None:
    first, second = members("one_of_two_cards", forks.places(2), tmp_path, ACCELERATE_USE_CPU="false")
    for name in ("captured", "captured weights"):
        torch.testing.assert_close(first[name], second[name], rtol=0.0, atol=0.0, equal_nan=True)
    assert_alike(first["captured"], first["eager"], TOLERANCE)
    assert (first["captured weights"] - first["eager weights"]).abs().max() < TOLERANCE


def half_of_a_card() -> dict[str, Tensor]:
    """A member: one of two ranks that share a device, and talk through gloo."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))  # else there would be NCCL, one card for each rank
    config = small("portrait", noise=0, ema=0.9)
    with Ranks(expect_world_size=2) as on:
        step, mine, rows = build(config, on, "fp64"), list(on.share(4)), []
        for n, (line, sketch, decision), more in fifty(config, on):
            more["good"] = more["good"][mine]
            more["bad"] = more["bad"] if on.is_main else 0
            if n < FEW:
                rows.append(step(line[mine], sketch[mine], decision, **more).reduced)
        return {"rows": torch.stack(rows).cpu(), "weights": all_weights(step)}


@DEVICES
def test_two_ranks_on_one_device_are_one_process(device: str, tmp_path: Path) -> None:
    places = [place | {"LOCAL_RANK": "0"} for place in forks.places(2)]
    first, second = members("half_of_a_card", places, tmp_path, ACCELERATE_USE_CPU=str(device == "cpu"))
    assert torch.equal(first["weights"], second["weights"])
    assert_alike(first["rows"], second["rows"], 0.0)
    config, on = small("portrait", noise=0, ema=0.9), ranks(device)
    step = build(config, on, "fp64")
    rows = torch.stack([step(*arguments, **more).reduced for n, arguments, more in fifty(config, on) if n < FEW])
    assert (all_weights(step) - first["weights"]).abs().max() < TOLERANCE
    # Only rank 0 saw the NaN, so its losses say how many pairs were in them.
    finite = [n for n in range(FEW) if n not in NAN_STEPS]
    assert_alike(first["rows"][finite], rows.cpu()[finite], 1e-7)
