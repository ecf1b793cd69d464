"""The step on several processes (gloo, CPU) against the step on one: what it computes, and what it sends.

Each child below runs once, on all ranks; it leaves what it saw in a file, and the tests read that.
"""

import hashlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.ranked import Result, run
from torch import Tensor, nn

from dist_sketch.core.config import Config, DataConfig, GeneratorConfig, LossConfig, OptimConfig, TrainConfig
from dist_sketch.core.config_rules import validate
from dist_sketch.core.ranks import Ranks
from dist_sketch.model.networks import BatchNorm
from dist_sketch.training.measures import NAMES, read
from dist_sketch.training.policy import BOTH, Decision
from dist_sketch.training.step import Step

LOCK_D = Decision(False, True, "D locked")
LOCK_G = Decision(True, False, "G locked")
# Each update of G multiplies a difference by two to three, even one that only comes from the order of a sum: after ten
# updates 1e-16 has become 1e-10.
MIXED = (BOTH, LOCK_G, LOCK_D, LOCK_G) * 5
BATCH = 4


def settings(
    norm: str,
    *,
    batch_size: int = BATCH,
    accumulate: int = 1,
    d_backward: str = "separate",
    dropout: float = 0.0,
    ema: float = 0.0,
    lr_d: float = 2e-4,
) -> Config:
    return validate(
        Config(
            data=DataConfig(batch_size=batch_size),
            train=TrainConfig(accumulate=accumulate),
            optim=OptimConfig(lr_g=2e-4, lr_d=lr_d),
            loss=LossConfig(d_backward=d_backward),  # type: ignore[arg-type]
            generator=GeneratorConfig(width=8, dropout=dropout, ema=ema),
            norm=norm,  # type: ignore[arg-type]
        )
    )


def build(config: Config, ranks: Ranks, precision: str) -> Step:
    torch.manual_seed(0)
    return Step(config, ranks, precision)


def share(ranks: Ranks, seed: int, size: int, count: int) -> tuple[Tensor, Tensor]:
    """This rank's part of a global batch."""
    draw = torch.Generator().manual_seed(seed)
    pair = torch.rand(2, count, 3, size, size, generator=draw, dtype=torch.float64) * 2 - 1
    mine = list(ranks.share(count))
    return pair[0][mine], pair[1][mine]


def go(step: Step, pair: tuple[Tensor, Tensor], decision: Decision) -> dict[str, float]:
    return read(step(*pair, decision, bad=1, stop=step.ranks.rank == 1).reduced)


def statistics(step: Step) -> Tensor:
    return torch.cat([b for net in step.modules().values() for n, b in net.named_buffers() if "running" in n])


def digest(step: Step, names: tuple[str, ...] = ("generator", "discriminator", "ema")) -> str:
    """Hash of the networks' weights."""
    sha = hashlib.sha256()
    for name in names:
        for p in step.modules()[name].parameters():
            sha.update(p.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


def sample(tensors: list[Tensor]) -> list[Tensor]:
    """Some thousand numbers of each tensor: enough to compare, and small enough for a file."""
    return [t.detach().flatten()[:: max(1, t.numel() // 4000)].clone() for t in tensors]


def gradients_of_a_step(step: Step, pair: tuple[Tensor, Tensor]) -> tuple[dict[str, float], dict[str, list[Tensor]]]:
    """What the step logs, and the reduced gradients that each optimizer is given."""
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for name, optimizer in (("g", step.learner_g.optimizer), ("d", step.learner_d.optimizer)):

        def look(*_: Any, name: str = name, optimizer: torch.optim.Optimizer = optimizer) -> None:
            seen[name] = sample([p.grad for p in optimizer.param_groups[0]["params"]])

        handles.append(optimizer.register_step_pre_hook(look))
    logged = go(step, pair, BOTH)
    for handle in handles:
        handle.remove()
    return logged, seen


def without_some(ranks: Ranks, pair: tuple[Tensor, Tensor], lost: set[int]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """This rank's share, stand-ins in the places of the pairs `lost` of the global batch; and which are good."""
    good = torch.tensor([i not in lost for i in ranks.share(BATCH)])
    line, sketch = (torch.where(good[:, None, None, None], half, half.flip(2)) for half in pair)
    return (line, sketch), good


def child_invariance(ranks: Ranks) -> Result:
    """The same global batches in float64 through all kinds of locks, and one of them in float32."""
    step = build(settings("group", ema=0.9), ranks, "fp64")
    assert MIXED[0] == BOTH
    first, gradients = gradients_of_a_step(step, share(ranks, 0, 64, BATCH))
    logged, digests = [first], [digest(step)]
    for n, decision in enumerate(MIXED[1:], 1):
        logged.append(go(step, share(ranks, n, 64, BATCH), decision))
        digests.append(digest(step) if n % 4 == 0 else "")
    weights = {name: sample(list(net.parameters())) for name, net in step.modules().items()}
    # Pairs 1 to 3 could not be read, so that three of four ranks have none.
    step = build(settings("group", ema=0.9), ranks, "fp64")
    filled, good = without_some(ranks, share(ranks, 99, 64, BATCH), {1, 2, 3})
    lossy = read(step(*filled, BOTH, bad=0, stop=False, good=good).reduced)
    after = {name: sample(list(net.parameters())) for name, net in step.modules().items()}
    found = {"logged": logged, "digests": digests, "weights": weights, "gradients": gradients}
    found |= {"lossy": lossy, "after": after, "after digest": digest(step)}
    for name, accumulate in (("plain", 1), ("pair by pair", BATCH // ranks.world_size)):
        # D held still by its learning rate: Adam's first step turns float32's rounding into whole steps
        single = build(settings("group", lr_d=1e-12, accumulate=accumulate), ranks, "no")
        found[name] = gradients_of_a_step(single, share(ranks, 0, 64, BATCH))
    return found


def traffic(ranks: Ranks, d_backward: str, accumulate: int) -> Result:
    """Bytes of each all-reduce in each kind of step, in order."""
    step = build(settings("none", d_backward=d_backward, accumulate=accumulate), ranks, "no")
    sent: list[int] = []
    plain: Callable[..., Any] = dist.all_reduce

    def counted(values: Tensor, *rest: Any, **more: Any) -> Any:
        sent.append(values.nbytes)
        return plain(values, *rest, **more)

    dist.all_reduce = counted
    found: Result = {
        "all": {n: 4 * sum(p.numel() for p in net.parameters()) for n, net in zip("gd", (step.g, step.d), strict=True)}
    }
    for name, decision in (("both", BOTH), ("lock_d", LOCK_D), ("lock_g", LOCK_G)):
        go(step, share(ranks, 0, 64, BATCH), decision)
        left = sum(p.grad is not None for net in (step.g, step.d) for p in net.parameters())
        found[name] = {"sent": list(sent), "left": left}
        sent.clear()
    dist.all_reduce = plain
    return found


def nan_on_one_rank(ranks: Ranks) -> Result:
    """BatchNorm, dropout, EMA; then a NaN that rank 1 alone sees, under each lock; then a good step."""
    step = build(settings("batch", batch_size=4, dropout=0.5, ema=0.9), ranks, "no")
    torch.manual_seed(1 + ranks.rank)  # dropout differs between ranks, weights may not
    go(step, share(ranks, 0, 64, 4), BOTH)
    live = ("generator", "discriminator")
    found: Result = {"start": digest(step, live), "own statistics": statistics(step), "skipped": []}
    # the last: a loss of infinity whose gradients (signs) are finite
    for decision, half, value in ((BOTH, 0, "nan"), (LOCK_D, 0, "nan"), (LOCK_G, 1, "nan"), (LOCK_D, 1, "inf")):
        pair = share(ranks, 1, 64, 4)
        if ranks.rank == 1:
            pair[half][0, 0, 5, 5] = float(value)
        logged = go(step, pair, decision)
        found["skipped"].append((logged["nonfinite"], digest(step, live), bool(statistics(step).isfinite().all())))
    found["good"] = (go(step, share(ranks, 2, 64, 4), BOTH)["nonfinite"], digest(step))
    found["moved"] = digest(step, live) != found["start"]
    found["before averaging"] = statistics(step)
    with step.averaged():
        found["after averaging"] = statistics(step)
    found["given back"] = bool((statistics(step) == found["before averaging"]).all())
    return found


def child_steps(ranks: Ranks) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        return {
            **{f"{way} {parts}": traffic(ranks, way, parts) for way in ("separate", "joint") for parts in (1, 2)},
            "nan": nan_on_one_rank(ranks),
        }


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    return run(2, child_steps, tmp_path_factory.mktemp("steps"))


@pytest.fixture(scope="module")
def invariance(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Result]]:
    """What each rank found, by the number of ranks."""
    return {n: run(n, child_invariance, tmp_path_factory.mktemp("invariance")) for n in (1, 2, 4)}


def relative(a: list[Tensor], b: list[Tensor]) -> float:
    x, y = (torch.cat(tensors).double() for tensors in (a, b))
    return ((x - y).norm() / y.norm()).item()


def furthest(a: dict[str, list[Tensor]], b: dict[str, list[Tensor]]) -> float:
    return max((x - y).abs().max().item() for n in a for x, y in zip(a[n], b[n], strict=True))


def assert_logged_alike(ours: dict[str, float], theirs: dict[str, float]) -> None:
    for name, value in theirs.items():
        if name not in ("bad", "stop"):
            # d/real and d/fake are only logged: their sigmoid is computed in float32
            assert ours[name] == pytest.approx(value, rel=1e-6 if name.startswith("d/") else 1e-8), name


@pytest.mark.parametrize("world", [2, 4])
def test_twenty_steps_on_any_number_of_ranks_are_those_of_one_process(
    invariance: dict[int, list[Result]], world: int, record_property: Callable[[str, object], None]
) -> None:
    one, many = invariance[1][0], invariance[world][0]
    for name in ("d", "g"):
        assert relative(many["gradients"][name], one["gradients"][name]) < 1e-10
    difference = furthest(many["weights"], one["weights"])
    record_property("difference", difference)
    assert difference < 1e-9
    assert len(one["logged"]) == 20
    for ours, theirs in zip(many["logged"], one["logged"], strict=True):
        assert_logged_alike(ours, theirs)


@pytest.mark.parametrize("world", [2, 4])
def test_a_pair_that_cannot_be_read_costs_the_same_on_any_number_of_ranks(
    invariance: dict[int, list[Result]], world: int
) -> None:
    one, many = invariance[1][0], invariance[world]
    assert one["lossy"]["pairs"] == 1
    assert furthest(many[0]["after"], one["after"]) < 1e-9
    assert len({rank["after digest"] for rank in many}) == 1
    assert_logged_alike(many[0]["lossy"], one["lossy"])


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_have_the_same_weights_and_log_the_same_after_every_step(
    invariance: dict[int, list[Result]], world: int
) -> None:
    first, *others = invariance[world]
    for other in others:
        assert first["digests"] == other["digests"]
        assert first["logged"] == other["logged"]
    assert len(set(first["digests"])) == 6  # of every fourth step, and "" for the others


def test_counts_and_the_stop_flag_are_summed_over_ranks(invariance: dict[int, list[Result]]) -> None:
    for logged in invariance[2][1]["logged"]:
        assert (logged["pairs"], logged["bad"], logged["stop"], logged["nonfinite"]) == (BATCH, 2, 1, 0)
    (one,) = invariance[1]
    assert (one["logged"][0]["bad"], one["logged"][0]["stop"]) == (1, 0)


LOSSES = ("loss/d_real", "loss/d_fake", "loss/g", "loss/g_l1", "loss/g_bce", "d/real", "d/fake")


@pytest.mark.parametrize("world", [2, 4])
def test_losses_and_reduced_gradients_of_one_step_in_float32(invariance: dict[int, list[Result]], world: int) -> None:
    """Pair by pair, with the same arithmetic, they agree to the rounding of the sum."""
    (logged_one, one), (logged_many, many) = (invariance[n][0]["pair by pair"] for n in (1, world))
    for name in LOSSES:
        assert logged_many[name] == pytest.approx(logged_one[name], rel=1e-5), name
    for name in ("d", "g"):
        assert relative(many[name], one[name]) < 1e-5, name


@pytest.mark.parametrize("world", [2, 4])
def test_gradients_of_other_batch_sizes_in_float32(invariance: dict[int, list[Result]], world: int) -> None:
    """Losses to 1e-5, gradients only loosely: a convolution of one pair rounds unlike one of four, and an input of
    LeakyReLU that differs in its last bit about zero gets another slope. In float64 they agree to 1e-10, above."""
    (logged_one, one), (logged_many, many) = (invariance[n][0]["plain"] for n in (1, world))
    for name in LOSSES:
        assert logged_many[name] == pytest.approx(logged_one[name], rel=1e-5), name
    for name in ("d", "g"):
        assert relative(many[name], one[name]) < 0.03, name


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("d_backward", ["separate", "joint"])
def test_each_trained_network_s_gradients_are_reduced_once_a_step(
    steps: list[Result], d_backward: str, parts: int
) -> None:
    vector = 8 * len(NAMES)
    for seen in (rank[f"{d_backward} {parts}"] for rank in steps):
        d, g, *rest = seen["both"]["sent"]
        assert rest == [vector]
        for net, sent in (("d", d), ("g", g)):  # besides the gradients only what aligns them
            assert seen["all"][net] <= sent < 1.01 * seen["all"][net]
        assert seen["lock_d"]["sent"] == [g, vector]
        assert seen["lock_g"]["sent"] == [d, vector]
        assert [seen[name]["left"] for name in ("both", "lock_d", "lock_g")] == [0, 0, 0]


def test_a_nan_on_one_rank_is_skipped_by_all_and_the_weights_stay_equal(steps: list[Result]) -> None:
    first, second = (rank["nan"] for rank in steps)
    assert first["start"] == second["start"]
    for rank in (first, second):
        assert {weights for _, weights, _ in rank["skipped"]} == {first["start"]}
        assert all(count > 0 for count, _, _ in rank["skipped"])
        assert rank["good"] == first["good"]  # the average included
        assert rank["good"][0] == 0
        assert rank["moved"]


def test_a_nan_does_not_stay_in_the_running_statistics(steps: list[Result]) -> None:
    for rank in steps:
        assert all(finite for _, _, finite in rank["nan"]["skipped"])
        assert rank["nan"]["after averaging"].isfinite().all()
        assert rank["nan"]["given back"]


def test_running_statistics_are_each_rank_s_own_until_they_are_averaged(steps: list[Result]) -> None:
    first, second = (rank["nan"] for rank in steps)
    assert not torch.equal(first["own statistics"], second["own statistics"])
    assert torch.equal(first["after averaging"], second["after averaging"])
    mean = (first["before averaging"].double() + second["before averaging"].double()) / 2
    assert torch.allclose(first["after averaging"].double(), mean, rtol=1e-6)


def test_synchronized_batch_norm_takes_the_place_of_the_plain_one(
    alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, synchronized = GeneratorConfig(width=8), TrainConfig(sync_batchnorm=True)
    config = validate(Config(data=DataConfig(batch_size=BATCH), train=synchronized, generator=small))

    def norms(step: Step) -> set[type[nn.Module]]:
        return {type(m) for net in step.modules().values() for m in net.modules() if "BatchNorm" in type(m).__name__}

    single = Step(config, alone, "no")  # one process has nothing to synchronize
    assert norms(single) == {BatchNorm}
    monkeypatch.setattr(alone, "world_size", 2)
    monkeypatch.setattr(alone, "same_weights", lambda net: None)  # there is no second process to send them
    several = Step(config, alone, "no")
    assert norms(several) == {nn.SyncBatchNorm}
    for name, net in several.modules().items():  # what is saved stays the same
        assert list(net.state_dict()) == list(single.modules()[name].state_dict())
