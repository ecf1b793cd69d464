"""A recorded step proves itself before it is used; and the step is one that can be recorded.

Without a GPU a "recording" here is the step itself, or something that differs from it as a bad one would.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config
from dist_sketch.core.ranks import Ranks
from dist_sketch.training import graphs
from dist_sketch.training.graphs import StepGraphs, why_eager
from dist_sketch.training.measures import Measured, read
from dist_sketch.training.policy import BOTH, Decision
from dist_sketch.training.step import Step

LOCK_D, LOCK_G = Decision(False, True, "D locked"), Decision(True, False, "G locked")
SEQUENCE = (BOTH, LOCK_D, BOTH, LOCK_G, LOCK_G, LOCK_D, BOTH)


@pytest.fixture
def ranks(alone: Ranks) -> Ranks:
    return alone


def portrait(**sections: Any) -> Config:
    """The preset with a small generator that has everything: noise, dropout, a moving average."""
    config = cfg.load("portrait")
    generator = replace(config.generator, width=8, detail=8, dropout=0.5, ema=0.9)
    return replace(config, generator=generator, **sections)


def build(config: Config, ranks: Ranks, precision: str = "no") -> Step:
    torch.manual_seed(0)
    return Step(config, ranks, precision, total=100)


def batch(config: Config, size: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    line, sketch = torch.rand(2, config.data.batch_size, config.data.channels, size, size, generator=draw) * 2 - 1
    return line, sketch


def all_state(step: Step) -> list[Tensor]:
    return [t.clone() for tensors in step._state().values() for t in tensors] + [torch.get_rng_state()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------- the check of a recorded step

Replay = Callable[[Step, bool, bool], Measured]


def recording(step: Step, ranks: Ranks, monkeypatch: pytest.MonkeyPatch, replay: Replay) -> list[tuple[bool, bool]]:
    """Lets `step` record itself, where a replay calls `replay`. Returns the list of replays, which grows."""
    step._graphs = StepGraphs(step._compute, step._state, ranks, "no", None)
    replays: list[tuple[bool, bool]] = []

    def record(self: StepGraphs, train_d: bool, train_g: bool) -> tuple[Any, str | None]:
        measured = Measured(torch.zeros(14, dtype=torch.float64), torch.zeros((), dtype=torch.bool))

        def run() -> None:
            replays.append((train_d, train_g))
            for static, new in zip(measured, replay(step, train_d, train_g), strict=True):
                static.copy_(new)

        return graphs._Graph(run, measured), None

    monkeypatch.setattr(StepGraphs, "_record", record)
    return replays


def trained(step: Step, config: Config, first: int = 0) -> list[dict[str, float]]:
    torch.manual_seed(5)
    measured = []
    for n, decision in enumerate(SEQUENCE, first):
        good = torch.tensor([True, n % 2 == 0, True, True])
        measured.append(step(*batch(config, seed=n), decision, bad=n % 2, stop=False, good=good))
    return [read(m.reduced) for m in measured]  # read late: no step may overwrite what an earlier one returned


def test_a_right_recording_is_used_and_changes_nothing(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, recorded = (build(portrait(), ranks) for _ in range(2))
    replays = recording(recorded, ranks, monkeypatch, lambda step, d, g: step._compute(d, g))
    expected = trained(plain, portrait()), all_state(plain)
    found = trained(recorded, portrait()), all_state(recorded)
    assert found[0] == expected[0]
    assert equal(found[1], expected[1])
    assert replays == [d[:2] for d in SEQUENCE]  # a replay is also what a decision's first step returns
    assert recorded.way == "one CUDA graph for each decision"


def nothing(step: Step, train_d: bool, train_g: bool) -> Measured:
    """What it measured is right, but the networks stay as they were."""
    copies = [t.clone() for tensors in step._state().values() for t in tensors]
    measured = step._compute(train_d, train_g)
    with torch.no_grad():
        for tensor, old in zip((t for tensors in step._state().values() for t in tensors), copies, strict=True):
            tensor.copy_(old)
    return measured


def without_d(step: Step, train_d: bool, train_g: bool) -> Measured:
    copies = [p.clone() for p in step.d.parameters()]
    measured = step._compute(train_d, train_g)
    with torch.no_grad():
        for p, old in zip(step.d.parameters(), copies, strict=True):
            p.copy_(old)
    return measured


def other_random_numbers(step: Step, train_d: bool, train_g: bool) -> Measured:
    measured = step._compute(train_d, train_g)
    torch.rand(1)
    return measured


def old_measures(step: Step, train_d: bool, train_g: bool) -> Measured:
    return step._compute(train_d, train_g)._replace(reduced=torch.ones(14, dtype=torch.float64))


def not_finite(step: Step, train_d: bool, train_g: bool) -> Measured:
    measured = step._compute(train_d, train_g)
    with torch.no_grad():
        next(step.g.parameters()).mul_(float("nan"))
    return measured


@pytest.mark.parametrize(
    ("replay", "named"),
    [
        (nothing, "G's weights"),
        (without_d, "D's weights"),
        (other_random_numbers, "random numbers"),
        (old_measures, "what it measures"),
        (not_finite, "G's weights"),
    ],
)
def test_a_wrong_recording_is_found_and_leaves_no_trace(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], replay: Replay, named: str
) -> None:
    plain, recorded = (build(portrait(), ranks) for _ in range(2))
    replays = recording(recorded, ranks, monkeypatch, replay)
    assert trained(recorded, portrait()) == trained(plain, portrait())
    trained(plain, portrait(), first=20), trained(recorded, portrait(), first=20)
    assert equal(all_state(recorded), all_state(plain))
    assert len(replays) == 1
    out = capsys.readouterr().out
    assert out.count("warning") == 1
    assert f"a replayed step differs from an eager one: {named} by" in out
    assert recorded.way.startswith("eager steps: a replayed step differs")


@pytest.mark.parametrize("where", ["here", "on another rank"])
def test_what_cannot_be_recorded_runs_eagerly(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    plain, recorded = (build(portrait(), ranks) for _ in range(2))
    recording(recorded, ranks, monkeypatch, lambda step, d, g: step._compute(d, g))
    if where == "here":
        monkeypatch.setattr(StepGraphs, "_record", lambda *_: (None, "no such kernel"))
    else:  # all ranks must do the same: this one could go on by replaying
        answers = iter([[None, None], [None, "no such kernel"]])
        monkeypatch.setattr(ranks, "gather", lambda _: next(answers))
    assert trained(recorded, portrait()) == trained(plain, portrait())
    assert capsys.readouterr().out == "warning: no CUDA graph is used, so training is slower: no such kernel\n"


@pytest.mark.parametrize("where", ["copies", "second step"])
def test_too_little_memory_for_the_check_is_no_end_of_the_run(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    plain, recorded = (build(portrait(), ranks) for _ in range(2))
    recording(recorded, ranks, monkeypatch, lambda step, d, g: step._compute(d, g))
    name = "__init__" if where == "copies" else "take"

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs.Snapshot, name, full)
    assert trained(recorded, portrait()) == trained(plain, portrait())
    assert equal(all_state(recorded), all_state(plain))
    assert capsys.readouterr().out.count("the GPU's memory is too small for the graph and its check") == 1


def test_a_step_that_is_not_finite_proves_nothing(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    step = build(portrait(), ranks)
    replays = recording(step, ranks, monkeypatch, lambda step, d, g: step._compute(d, g))
    line, sketch = batch(portrait())
    before = [p.clone() for p in step.g.parameters()]
    step(line * float("nan"), sketch, BOTH, bad=0, stop=False)
    assert not replays
    assert equal(before, list(step.g.parameters()))
    step(line, sketch, BOTH, bad=0, stop=False)
    assert len(replays) == 1
    step(line * float("nan"), sketch, BOTH, bad=0, stop=False)
    assert len(replays) == 2


def test_loaded_moments_are_recorded_anew(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam has other tensors then, and a graph would go on with the old ones."""
    step, plain = build(portrait(), ranks), build(portrait(), ranks)
    recording(step, ranks, monkeypatch, lambda step, d, g: step._compute(d, g))
    trained(step, portrait())
    assert len(step._graphs._graphs) == 3
    step.load_state_dict(plain.state_dict())
    assert not step._graphs._graphs


def test_why_a_step_is_not_recorded() -> None:
    def on(device: str, in_cuda_graphs: bool = True) -> Any:
        return SimpleNamespace(device=torch.device(device), in_cuda_graphs=in_cuda_graphs)

    assert why_eager(on("cuda"), "bf16", 1) is None
    for ranks, precision, parts, said in (
        (on("cpu"), "bf16", 1, "need an NVIDIA GPU"),
        (on("cuda", in_cuda_graphs=False), "bf16", 1, "NCCL"),
        (on("cuda"), "fp16", 1, "fp16"),
        (on("cuda"), "bf16", 2, "train.accumulate"),
    ):
        assert said in str(why_eager(ranks, precision, parts))


# ---------------------------------------------------------------- a step that can be recorded


class Operations(TorchDispatchMode):
    """Notes what is dispatched: name and shapes. Views are no work for a device."""

    VIEWS = ("aten.detach.default", "aten.alias.default", "aten._unsafe_view.default")
    # What asks the device for a value, or sends it one
    FORBIDDEN = ("_local_scalar_dense", "nonzero", "is_nonzero", "aten.equal", "lift_fresh", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        assert not any(word in name for word in self.FORBIDDEN), name
        if not (func.is_view or name in self.VIEWS or ".empty" in name or "new_empty" in name or "profiler" in name):
            shapes = [tuple(a.shape) for a in torch.utils._pytree.tree_leaves(args) if isinstance(a, Tensor)]
            self.seen.append((name, shapes))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("preset", "size", "most"), [("portrait", 128, 370), (None, 128, 325)], ids=["portrait", "paper"]
)
def test_the_number_of_operations_does_not_grow(ranks: Ranks, preset: str | None, size: int, most: int) -> None:
    """On a GPU each is a kernel or more, and at small batches starting them is what takes the time."""
    config = cfg.load(preset)
    step = build(config, ranks, "bf16")
    step(*batch(config, size), BOTH, bad=0, stop=False)
    with Operations() as operations:
        step(*batch(config, size), BOTH, bad=0, stop=False)
    assert len(operations.seen) <= most


@pytest.mark.parametrize("precision", ["no", "bf16", "fp64"])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("decision", [BOTH, LOCK_D, LOCK_G], ids=["both", "lock_d", "lock_g"])
def test_nothing_in_a_step_depends_on_its_values(ranks: Ranks, precision: str, norm: Any, decision: Decision) -> None:
    """The same operations on the same shapes and addresses, whatever the pairs are; and the device is never asked."""
    config = portrait(norm=norm, optim=replace(cfg.load("portrait").optim, clip_norm=1.0))
    step = build(config, ranks, precision)
    runs, places = [], []
    for n, (bad, factor) in enumerate(itertools.product((0, 3), (1.0, float("nan")))):
        line, sketch = batch(config, seed=n)
        good = torch.tensor([True] + [not bad] * 3)
        step(line * factor, sketch, decision, bad=bad, stop=bool(n % 2), good=good)
        with Operations() as operations:
            step._compute(*decision[:2])
        runs.append(operations.seen)
        assert step._inputs is not None
        inputs = [step._inputs.line, step._inputs.sketch, step._inputs.good, step._inputs.counts]
        rates = [*step.learner_g.rates, *step.learner_d.rates, step._ema_rate]
        halves = [*step.learner_g._half.values(), *step.learner_d._half.values()]
        state = [t for tensors in step._state().values() for t in tensors]
        places.append([t.data_ptr() for t in (*inputs, *rates, *halves, *state)])
        assert all(p.grad is None for net in (step.g, step.d) for p in net.parameters())
    assert runs[1:] == runs[:1] * 3
    assert places[1:] == places[:1] * 3
