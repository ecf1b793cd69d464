"""One training step against a straight-line implementation of the paper's, and the step's own promises."""

import copy
import gc
import re
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_sketch.core.config import Config, DataConfig, GeneratorConfig
from dist_sketch.core.config_rules import validate
from dist_sketch.core.precision import resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.model import losses
from dist_sketch.training.measures import MEANS, NAMES, read
from dist_sketch.training.policy import BOTH, Decision
from dist_sketch.training.step import Step, learning_rate_factor

LOCK_D = Decision(False, True, "D locked")
LOCK_G = Decision(True, False, "G locked")
QUICK = {"network": "baseline"}  # fp16 is slow on CPUs


# ---------------------------------------------------------------- the paper's step, written out again


class PaperGenerator(nn.Module):
    """Six down-sampling layers, five up-sampling layers, a last transposed convolution (section 3.2)."""

    def __init__(self, norm: type[nn.Module], p: float):
        super().__init__()

        def down(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.LeakyReLU(0.01), norm(o))

        def up(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(nn.ConvTranspose2d(i, o, 3, 2, 1, 1), nn.LeakyReLU(0.01), norm(o), nn.Dropout2d(p))

        self.d1, self.d2, self.d3 = down(3, 64), down(64, 128), down(128, 256)
        self.d4, self.d5, self.d6 = down(256, 512), down(512, 512), down(512, 512)
        self.u1, self.u2, self.u3 = up(512, 512), up(1024, 512), up(1024, 256)
        self.u4, self.u5 = up(512, 128), up(256, 64)
        self.last = nn.ConvTranspose2d(128, 3, 3, 2, 1, 1)

    def forward(self, lines: Tensor) -> Tensor:
        x1 = self.d1(lines)
        x2 = self.d2(x1)
        x3 = self.d3(x2)
        x4 = self.d4(x3)
        x5 = self.d5(x4)
        x6 = self.d6(x5)
        y = torch.cat([self.u1(x6), x5], 1)
        y = torch.cat([self.u2(y), x4], 1)
        y = torch.cat([self.u3(y), x3], 1)
        y = torch.cat([self.u4(y), x2], 1)
        y = torch.cat([self.u5(y), x1], 1)
        return torch.tanh(self.last(y))


class PaperDiscriminator(nn.Module):
    """Two down-sampling layers and two convolutions of stride 1, then sigmoid (section 3.3)."""

    def __init__(self, norm: type[nn.Module], p: float):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(6, 64, 3, 2, 1), nn.Conv2d(64, 128, 3, 2, 1)
        self.norm2 = norm(128)
        self.conv3, self.norm3 = nn.Conv2d(128, 256, 3), norm(256)
        self.conv4 = nn.Conv2d(256, 1, 3)
        self.act, self.drop = nn.LeakyReLU(0.01), nn.Dropout2d(p)

    def forward(self, lines: Tensor, sketches: Tensor) -> Tensor:
        x = self.act(self.conv1(torch.cat([lines, sketches], 1)))
        x = self.norm2(self.act(self.conv2(x)))
        x = self.drop(self.norm3(self.act(self.conv3(x))))
        return torch.sigmoid(self.conv4(x))


def gradients(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters()]


def paper_step(
    g: nn.Module, d: nn.Module, adam_g: torch.optim.Adam, adam_d: torch.optim.Adam, lines: Tensor, sketches: Tensor
) -> dict[str, Any]:
    """Section 3.4, line by line."""
    bce, l1 = nn.BCELoss(), nn.L1Loss()
    output_g = g(lines)

    adam_d.zero_grad()
    real_d = d(lines, sketches)
    real_loss_d = bce(real_d, torch.ones_like(real_d))
    real_loss_d.backward()
    fake_d = d(lines, output_g.detach())
    fake_loss_d = bce(fake_d, torch.zeros_like(fake_d))
    fake_loss_d.backward()
    gradients_d = gradients(d)
    adam_d.step()

    adam_g.zero_grad()
    output_d = d(lines, output_g)
    bce_loss_g = bce(output_d, torch.ones_like(output_d))
    l1_loss_g = l1(output_g, sketches)
    loss_g = 0.1 * (bce_loss_g + 100 * l1_loss_g)
    loss_g.backward()
    gradients_g = gradients(g)
    adam_g.step()
    measured = {
        "loss/d_real": real_loss_d,
        "loss/d_fake": fake_loss_d,
        "loss/d": real_loss_d + fake_loss_d,
        "loss/g": loss_g,
        "loss/g_bce": bce_loss_g,
        "loss/g_l1": l1_loss_g,
        "d/real": real_d.mean(),
        "d/fake": fake_d.mean(),
        "norm/d": torch.cat([x.flatten() for x in gradients_d]).double().norm(),
        "norm/g": torch.cat([x.flatten() for x in gradients_g]).double().norm(),
    }
    return {
        "output_g": output_g.detach(),
        "measured": {k: v.item() for k, v in measured.items()},
        "gradients_d": gradients_d,
        "gradients_g": gradients_g,
    }


def paper_twin(step: Step, config: Config) -> SimpleNamespace:
    """The straight-line implementation with the weights that `step` has now.

    It keeps its tensors in the same memory format, so that the convolutions round alike. Where they do not, an input of
    LeakyReLU (or of L1's sign) that differs in its last bit about zero gets another slope: 1e-2 in the gradients.
    """
    norm = {
        "batch": nn.BatchNorm2d,
        "instance": lambda channels: nn.InstanceNorm2d(channels, affine=True),
        "none": lambda channels: nn.Identity(),
    }[config.norm]
    g, d = PaperGenerator(norm, config.generator.dropout), PaperDiscriminator(norm, config.generator.dropout)
    with torch.no_grad():
        for twin, ours in ((g, step.g), (d, step.d)):
            twin.to(step.dtype, memory_format=torch.channels_last)
            for a, b in zip(twin.parameters(), ours.parameters(), strict=True):
                assert a.shape == b.shape
                a.copy_(b)
    adam_g = torch.optim.Adam(g.parameters(), lr=config.optim.lr_g, betas=(0.5, 0.999), fused=False, foreach=False)
    adam_d = torch.optim.Adam(d.parameters(), lr=config.optim.lr_d, betas=(0.5, 0.999), fused=False, foreach=False)
    return SimpleNamespace(g=g, d=d, adam_g=adam_g, adam_d=adam_d)


# ---------------------------------------------------------------- helpers


@pytest.fixture
def ranks(alone: Ranks) -> Ranks:
    return alone


def settings(**changes: Any) -> Config:
    """The defaults, two pairs a batch and no dropout, changed: `settings(norm="none", optim=dict(lr_g=1e-4))`."""
    config = replace(Config(), data=DataConfig(batch_size=2), generator=GeneratorConfig(dropout=0.0))
    for name, value in changes.items():
        value = replace(getattr(config, name), **value) if isinstance(value, dict) else value
        config = replace(config, **{name: value})
    return validate(config)


def build(config: Config, ranks: Ranks, precision: str = "no", seed: int = 0, total: int = 0) -> Step:
    torch.manual_seed(seed)
    return Step(config, ranks, precision, total)


def batch(size: int = 64, count: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    line, sketch = torch.rand(2, count, 3, size, size, generator=draw, dtype=torch.float64) * 2 - 1
    return line.to(memory_format=torch.channels_last), sketch.to(memory_format=torch.channels_last)


def go(step: Step, pair: tuple[Tensor, Tensor], decision: Decision = BOTH) -> dict[str, float]:
    return read(step(*pair, decision, bad=0, stop=False).reduced)


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest absolute difference."""
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def relative(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest relative difference of a tensor, in the Euclidean norm.

    A tensor that has nearly cancelled out (D's last bias: its real and fake terms oppose) is held against a hundredth
    of the whole instead of against itself.
    """
    whole = sum(y.double().norm() ** 2 for y in b) ** 0.5
    pairs = [(x.double(), y.double()) for x, y in zip(a, b, strict=True)]
    return max(((x - y).norm() / y.norm().clamp_min(whole / 100)).item() for x, y in pairs)


def set_scale(scaler: torch.amp.GradScaler, scale: float, **more: Any) -> torch.amp.GradScaler:
    scaler.load_state_dict(scaler.state_dict() | {"scale": scale} | more)
    return scaler


def captured(step: Step) -> dict[str, list[Tensor]]:
    """Will hold the gradients that each optimizer is given, under "g" and "d"."""
    seen: dict[str, list[Tensor]] = {}
    for name, optimizer, net in (("g", step.learner_g.optimizer, step.g), ("d", step.learner_d.optimizer, step.d)):
        optimizer.register_step_pre_hook(lambda *_, name=name, net=net: seen.__setitem__(name, gradients(net)))
    return seen


def poisoned(pair: tuple[Tensor, Tensor], half: int = 0, value: float = float("nan")) -> tuple[Tensor, Tensor]:
    copies = [t.clone() for t in pair]
    copies[half][0, 0, 10, 10] = value
    return copies[0], copies[1]


# ---------------------------------------------------------------- the step against the paper's


@pytest.mark.parametrize(
    ("norm", "dropout"), [("batch", 0.0), ("batch", 0.5), ("none", 0.0)], ids=["batch", "dropout", "none"]
)
def test_outputs_losses_and_gradients_are_the_paper_s_in_float32(ranks: Ranks, norm: str, dropout: float) -> None:
    """D is held still by its learning rate: Adam's first step is lr * sign(gradient), which turns the rounding of a
    gradient near zero into a whole step. The next test lets D move before G's turn, in float64."""
    config = settings(norm=norm, generator={"dropout": dropout}, optim={"lr_d": 1e-12})
    step = build(config, ranks)
    twin = paper_twin(step, config)
    pair = batch(128)
    seen, pages = captured(step), []
    step.g.register_forward_hook(lambda module, given, page: pages.append(page.detach()))

    torch.manual_seed(1)
    ours = go(step, pair)
    torch.manual_seed(1)
    theirs = paper_step(twin.g, twin.d, twin.adam_g, twin.adam_d, *(x.float() for x in pair))

    assert len(pages) == 1  # G draws once a step
    assert relative(pages, [theirs["output_g"]]) < 1e-5
    for name, value in theirs["measured"].items():
        # torch adds up a norm of 16 million numbers in float32: that is its rounding, the gradients' own follows below
        assert ours[name] == pytest.approx(value, rel=1e-3 if name.startswith("norm/") else 1e-5), name
    assert relative(seen["d"], theirs["gradients_d"]) < 1e-5
    assert relative(seen["g"], theirs["gradients_g"]) < 1e-5


@pytest.mark.parametrize(
    ("norm", "d_backward", "size"), [("batch", "separate", 64), ("none", "joint", 64), ("instance", "separate", 128)]
)
def test_weights_after_one_step_are_the_paper_s_in_float64(ranks: Ranks, norm: str, d_backward: str, size: int) -> None:
    # without dropout where D judges both halves in one pass: it would draw other numbers than the paper's two
    config = settings(norm=norm, generator={"dropout": 0.5 * (norm != "none")}, loss={"d_backward": d_backward})
    step = build(config, ranks, "fp64")
    twin = paper_twin(step, config)
    pair = batch(size)
    before = weights(step.g) + weights(step.d)
    torch.manual_seed(1)
    ours = go(step, pair)
    torch.manual_seed(1)
    theirs = paper_step(twin.g, twin.d, twin.adam_g, twin.adam_d, *pair)
    for name, value in theirs["measured"].items():
        # d/real and d/fake are only logged: their sigmoid is computed in float32
        assert ours[name] == pytest.approx(value, rel=1e-6 if name.startswith("d/") else 1e-9), name
    assert distance(weights(step.g) + weights(step.d), weights(twin.g) + weights(twin.d)) < 1e-9
    assert distance(weights(step.g), before[: len(weights(step.g))]) > 1e-3  # it did move
    for ours_net, twin_net in ((step.g, twin.g), (step.d, twin.d)):  # running statistics too
        for (name, a), b in zip(ours_net.named_buffers(), twin_net.buffers(), strict=True):
            assert name.endswith("num_batches_tracked") or torch.allclose(a, b, rtol=1e-12, atol=1e-15)


def test_joint_and_separate_backward_give_the_same_update(ranks: Ranks) -> None:
    ends = []
    for d_backward in ("separate", "joint"):
        step = build(settings(loss={"d_backward": d_backward}), ranks, "fp64")
        start = weights(step.d)
        measured = go(step, batch())
        ends.append((weights(step.g) + weights(step.d), measured))
        assert distance(weights(step.d), start) > 1e-4
    assert distance(ends[0][0], ends[1][0]) < 1e-12
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-12)


def test_every_setting_of_the_losses_and_of_adam_counts(ranks: Ranks) -> None:
    """The same step by hand, with other values than the paper's."""
    config = settings(
        norm="none",
        loss={"lambda_l1": 7.0, "lambda_ssim": 5.0, "scale": 0.3},
        optim={"lr_g": 3e-4, "lr_d": 5e-4, "beta1": 0.8, "beta2": 0.9},
    )
    step = build(config, ranks, "fp64")
    seen = captured(step)
    start = {"g": weights(step.g), "d": weights(step.d)}
    measured = go(step, batch())
    bce, l1, unlike = (measured[f"loss/g_{name}"] for name in ("bce", "l1", "ssim"))
    assert measured["loss/g"] == pytest.approx(0.3 * (bce + 7 * l1 + 5 * unlike), rel=1e-12)
    for name, net, lr in (("g", step.g, 3e-4), ("d", step.d, 5e-4)):
        # Adam's first step: both means are corrected to the gradient itself
        moved = [w - lr * g / (g.abs() + 1e-8) for w, g in zip(start[name], seen[name], strict=True)]
        assert distance(weights(net), moved) < 1e-12
    second = {"g": seen["g"], "d": seen["d"]}
    start = {"g": weights(step.g), "d": weights(step.d)}
    go(step, batch(seed=1))
    for name, net, lr in (("g", step.g, 3e-4), ("d", step.d, 5e-4)):
        for w, first, now, after in zip(start[name], second[name], seen[name], net.parameters(), strict=True):
            mean = (0.8 * 0.2 * first + 0.2 * now) / (1 - 0.8**2)
            square = (0.9 * 0.1 * first**2 + 0.1 * now**2) / (1 - 0.9**2)
            assert (w - lr * mean / (square.sqrt() + 1e-8) - after).abs().max() < 1e-12


# ---------------------------------------------------------------- locks


def d_loss_by_hand(step: Step, pair: tuple[Tensor, Tensor]) -> float:
    g, d = copy.deepcopy(step.g), copy.deepcopy(step.d)
    with torch.no_grad():
        real, fake = torch.sigmoid(d(*pair)), torch.sigmoid(d(pair[0], g(pair[0])))
        return (nn.BCELoss()(real, torch.ones_like(real)) + nn.BCELoss()(fake, torch.zeros_like(fake))).item()


def test_a_locked_d_does_not_change_and_is_still_measured(ranks: Ranks) -> None:
    step = build(settings(), ranks, "fp64")
    go(step, batch(seed=1))  # Adam has momentum now: a step without gradients would still move D
    d, g, expected = weights(step.d), weights(step.g), d_loss_by_hand(step, batch())
    calls: list[str] = []
    step.learner_d.optimizer.register_step_pre_hook(lambda *_: calls.append("d"))
    moments = copy.deepcopy(step.learner_d.optimizer.state_dict()["state"])
    measured = go(step, batch(), LOCK_D)
    assert equal(weights(step.d), d)
    assert not equal(weights(step.g), g)
    assert not calls  # a locked network never reaches its optimizer
    for name, moment in moments.items():
        assert all(torch.equal(moment[k], step.learner_d.optimizer.state_dict()["state"][name][k]) for k in moment)
    assert measured["loss/d"] == pytest.approx(expected, rel=1e-10)
    assert measured["norm/d"] == 0
    assert measured["norm/g"] > 0
    assert all(p.grad is None for p in step.d.parameters())


def test_a_locked_g_does_not_change_and_is_still_measured(ranks: Ranks) -> None:
    step = build(settings(generator={"ema": 0.9}), ranks, "fp64")
    go(step, batch(seed=1))
    g, d, average, updates = weights(step.g), weights(step.d), weights(step.ema), step.updates_g
    expected_d, calls, pages = d_loss_by_hand(step, batch()), [], []
    step.learner_g.optimizer.register_step_pre_hook(lambda *_: calls.append("g"))
    step.g.register_forward_hook(lambda module, given, page: pages.append(page))
    measured = go(step, batch(), LOCK_G)
    assert equal(weights(step.g), g)
    assert equal(weights(step.ema), average)
    assert step.updates_g == updates
    assert not equal(weights(step.d), d)
    assert not calls
    assert not pages[0].requires_grad  # no graph is built for a network that does not train
    assert measured["loss/d"] == pytest.approx(expected_d, rel=1e-10)
    line, sketch = batch()
    with torch.no_grad():  # G's loss is measured by the D that has just been updated, as when G trains
        logits = step.d(line, pages[0])
        by_hand = 0.1 * (losses.bce(logits, 1.0).mean() + 100 * (pages[0] - sketch).abs().mean())
    assert measured["loss/g"] == pytest.approx(by_hand.item(), rel=1e-10)
    assert measured["norm/g"] == 0
    assert all(p.grad is None for net in (step.g, step.d) for p in net.parameters())


def test_the_same_losses_are_measured_whether_d_is_locked_or_not(ranks: Ranks) -> None:
    free, locked = (go(build(settings(), ranks, "fp64"), batch(), d) for d in (BOTH, LOCK_D))
    for name in ("loss/d_real", "loss/d_fake", "d/real", "d/fake", "loss/g_l1"):
        assert locked[name] == pytest.approx(free[name], rel=1e-10), name
    assert set(locked) == set(free) == {*NAMES, "loss/d", "overflow_d", "overflow_g"}


def test_gradients_do_not_leak_from_one_turn_or_step_into_the_next(ranks: Ranks) -> None:
    """What D's optimizer gets is D's loss alone, after any sequence of locks."""
    step = build(settings(norm="none"), ranks, "fp64")
    seen = captured(step)
    for decision in (BOTH, LOCK_D, LOCK_G, BOTH):
        g, d, (line, sketch) = copy.deepcopy(step.g), copy.deepcopy(step.d).requires_grad_(True), batch()
        seen.clear()
        go(step, (line, sketch), decision)
        assert set(seen) == {n for n, trained in zip("dg", decision[:2], strict=True) if trained}
        if decision.train_d:
            (losses.bce(d(line, sketch), 1.0) + losses.bce(d(line, g(line).detach()), 0.0)).mean().backward()
            assert relative(seen["d"], gradients(d)) < 1e-10
        assert all(p.grad is None for net in (step.g, step.d) for p in net.parameters())


# ---------------------------------------------------------------- steps that are not finite


def statistics(step: Step) -> list[Tensor]:
    return [b.clone() for net in step.modules().values() for b in net.buffers() if b.is_floating_point()]


@pytest.mark.parametrize("decision", [BOTH, LOCK_D, LOCK_G], ids=["both", "lock_d", "lock_g"])
@pytest.mark.parametrize(("half", "value"), [(0, "nan"), (1, "inf")], ids=["line", "sketch"])
def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted(
    ranks: Ranks, decision: Decision, half: int, value: str
) -> None:
    """An infinite sketch gives an infinite L1 with finite gradients (they are signs): skipped all the same."""
    step = build(settings(generator={"ema": 0.5}), ranks)
    go(step, batch(seed=1))
    before = [*weights(step.g), *weights(step.d)]
    moments = copy.deepcopy([step.learner_g.optimizer.state_dict(), step.learner_d.optimizer.state_dict()])
    stats = statistics(step)
    measured = go(step, poisoned(batch(), half, float(value)), decision)
    assert measured["nonfinite"] == 1
    assert equal([*weights(step.g), *weights(step.d)], before)
    now = [step.learner_g.optimizer.state_dict(), step.learner_d.optimizer.state_dict()]
    for was, state in zip(moments, now, strict=True):
        for n, moment in was["state"].items():
            assert all(torch.equal(moment[k], state["state"][n][k]) for k in moment)
    assert all(p.isfinite().all() for p in step.ema.parameters())
    assert equal(statistics(step), stats)  # else the NaN would stay in the running statistics for ever

    good = go(step, batch(seed=2))
    assert good["nonfinite"] == 0
    assert not equal(weights(step.g), before[: len(weights(step.g))])
    with torch.no_grad():
        for net in (step.g, step.ema):
            assert copy.deepcopy(net).eval()(batch()[0].float()).isfinite().all()


@pytest.mark.parametrize(
    ("poison", "place"),
    [
        ("batch", r"the output of down\.0\S* \(Conv2d\) of the generator"),
        ("weight", r"the weight \S+ of the discriminator"),
        ("gradient", r"the gradient at the output of \S+ \(\w+\) of the generator"),
        ("nothing", "^$"),
    ],
)
def test_the_first_value_that_is_not_finite_is_named(ranks: Ranks, poison: str, place: str) -> None:
    """The repeated step leaves no trace: the next one is as if it had not been."""
    ended = []
    for looks in (False, True):
        step, (line, sketch) = build(settings(), ranks), batch()
        go(step, batch(seed=1))
        if looks:
            weight = next(step.d.parameters())
            kept = weight.detach().clone()
            hook = step.learner_g.module.register_forward_hook(
                lambda _, __, out: out.register_hook(lambda g: g * float("inf") if poison == "gradient" else g) and None
            )
            if poison == "weight":
                weight.data[0] = float("nan")
            found = step.first_bad(
                poisoned((line, sketch), 0, float("nan"))[0] if poison == "batch" else line, sketch, BOTH, None
            )
            assert re.search(place, found), found
            hook.remove()
            weight.data.copy_(kept)
        go(step, batch(seed=2))
        ended.append([*weights(step.g), *weights(step.d), *statistics(step)])
    assert equal(*ended)


def test_the_step_after_a_skipped_one_is_as_if_it_had_not_been(ranks: Ranks) -> None:
    runs = []
    for sequence in ([1, 2], [1, None, 2]):
        step = build(settings(), ranks)
        for seed in sequence:
            go(step, poisoned(batch()) if seed is None else batch(seed=seed))
        runs.append(weights(step.g) + weights(step.d) + statistics(step))
    assert equal(*runs)


def test_what_the_loader_and_the_signals_say_is_passed_on(ranks: Ranks) -> None:
    step = build(settings(norm="none"), ranks)
    measured = read(step(*batch(), BOTH, bad=3, stop=True).reduced)
    assert (measured["pairs"], measured["bad"], measured["stop"], measured["nonfinite"]) == (2, 3, 1, 0)


# ---------------------------------------------------------------- precision, clipping


def test_bf16_and_fp16_losses_are_near_float32_s(ranks: Ranks) -> None:
    exact = go(build(settings(), ranks), batch())
    for precision in ("bf16", "fp16"):
        step = build(settings(), ranks, precision)
        if precision == "fp16":
            set_scale(step.learner_g.scaler, 2.0**6)  # at its first scale of 2^16 this G overflows
        start = weights(step.g)
        low = go(step, batch())
        for name in ("loss/d_real", "loss/d_fake", "loss/g", "loss/g_l1", "d/real", "d/fake"):
            assert low[name] == pytest.approx(exact[name], rel=0.05), (precision, name)
            assert low[name] != exact[name]  # it was another arithmetic
        assert low["norm/d"] == pytest.approx(exact["norm/d"], rel=0.2)  # unscaled
        assert {p.dtype for p in step.g.parameters()} == {torch.float32}
        assert not equal(weights(step.g), start)


@pytest.mark.parametrize("overflows", ["g", "d"])
def test_an_fp16_overflow_skips_one_network_only(ranks: Ranks, overflows: str) -> None:
    step = build(settings(generator=QUICK), ranks, "fp16")
    huge = set_scale(getattr(step, f"learner_{overflows}").scaler, 2.0**120)
    spared = "d" if overflows == "g" else "g"
    before = {n: weights(getattr(step, n)) for n in "gd"}
    measured = go(step, batch())
    assert equal(weights(getattr(step, overflows)), before[overflows])
    assert not equal(weights(getattr(step, spared)), before[spared])
    assert (measured["nonfinite"], measured[f"overflow_{overflows}"], measured[f"overflow_{spared}"]) == (0, 1, 0)
    assert huge.get_scale() == 2.0**119  # its own scale is halved, the other's is not
    assert getattr(step, f"learner_{spared}").scaler.get_scale() == 2.0**16


def test_scaling_changes_no_update(ranks: Ranks) -> None:
    """Powers of two are exact: with a scale that grows each step, the update is the one without scaling."""
    plain, scaled = (build(settings(generator=QUICK), ranks) for _ in range(2))
    for learner in (scaled.learner_g, scaled.learner_d):
        learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1)
    for n, decision in enumerate((BOTH, LOCK_D, LOCK_G, BOTH)):
        measured = [go(step, batch(seed=n), decision) for step in (plain, scaled)]
        assert measured[0] == measured[1]
    assert equal(weights(plain.g) + weights(plain.d), weights(scaled.g) + weights(scaled.d))
    scales = [learner.scaler.get_scale() for learner in (scaled.learner_g, scaled.learner_d)]
    assert scales == [2.0**11] * 2  # three updates each


@pytest.mark.parametrize("decision", [BOTH, LOCK_D, LOCK_G], ids=["both", "lock_d", "lock_g"])
@pytest.mark.parametrize("parts", [1, 2])
def test_backward_then_step_network_by_network(ranks: Ranks, decision: Decision, parts: int) -> None:
    """A network's gradients are unscaled, clipped and applied before the other's backward; a locked one sees none."""
    step = build(settings(generator=QUICK, optim={"clip_norm": 1.0}, train={"accumulate": parts}), ranks, "fp16")
    events: list[str] = []

    def told(name: str, plain: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            events.append(name)
            return plain(*arguments, **more)

        return call

    for net in "gd":
        scaler, optimizer = (getattr(getattr(step, f"learner_{net}"), n) for n in ("scaler", "optimizer"))
        for method in ("scale", "unscale_", "step", "update"):
            setattr(scaler, method, told(f"{net} {method}", getattr(scaler, method)))
        optimizer.register_step_pre_hook(told(f"{net} optimizer", lambda *_: None))
    go(step, batch(), decision)

    def update(net: str, backwards: int) -> list[str]:
        after = (f"{net} {e}" for e in ("unscale_", "step", "optimizer", "update"))
        return [f"{net} scale"] * backwards + list(after)

    d = update("d", 2 * parts) if decision.train_d else []  # the real and the fake term
    assert events == d + (update("g", parts) if decision.train_g else [])


def test_a_locked_network_s_scaler_does_not_move(ranks: Ranks) -> None:
    step = build(settings(generator=QUICK), ranks, "fp16")
    for scaler in (step.learner_g.scaler, step.learner_d.scaler):
        set_scale(scaler, 64.0, growth_interval=1)
    go(step, batch(), LOCK_D)
    assert (step.learner_d.scaler.get_scale(), step.learner_g.scaler.get_scale()) == (64, 128)
    go(step, batch(), LOCK_G)
    assert (step.learner_d.scaler.get_scale(), step.learner_g.scaler.get_scale()) == (128, 128)


@pytest.mark.parametrize("precision", ["fp64", "fp16"])
def test_clip_norm(ranks: Ranks, precision: str) -> None:
    free, tight, loose = (
        build(settings(generator=QUICK, optim={"clip_norm": c}), ranks, precision) for c in (0.0, 0.01, 1e6)
    )
    whole, clipped = captured(free), captured(tight)
    measured = go(free, batch()), go(tight, batch())
    for name in "dg":
        norm = torch.cat([g.flatten() for g in whole[name]]).norm().item()
        assert norm > 0.02
        # logged as they are before clipping; G's turn meets a D that clipping has hardly touched
        assert measured[0][f"norm/{name}"] == pytest.approx(norm, rel=1e-4)
        assert torch.cat([g.flatten() for g in clipped[name]]).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert measured[1]["norm/d"] == pytest.approx(measured[0]["norm/d"], rel=1e-9)
    scaled = [g * 0.01 / measured[0]["norm/d"] for g in whole["d"]]
    assert relative(clipped["d"], scaled) < 1e-3
    go(loose, batch())
    assert equal(weights(loose.d), weights(free.d))


def test_resolve_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for wanted in ("no", "bf16", "fp16", "fp64"):
        assert resolve_precision(wanted, cpu) == wanted
    for amx, avx, resolved in ((True, False, "bf16"), (False, True, "bf16"), (False, False, "no")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert resolve_precision("auto", cpu) == resolved
    for capability, resolved in (((7, 5), "no"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert resolve_precision("auto", cuda) == resolved


# ---------------------------------------------------------------- a batch in parts, a batch with gaps, learning rates


@pytest.mark.parametrize("d_backward", ["separate", "joint"])
def test_parts_of_a_batch_give_the_update_of_the_whole(ranks: Ranks, d_backward: str) -> None:
    ends = []
    for parts in (1, 2, 4):
        config = settings(
            norm="group",
            data={"batch_size": 4},
            train={"accumulate": parts},
            generator={"width": 8},
            loss={"d_backward": d_backward},
        )
        step = build(config, ranks, "fp64")
        drawn: list[int] = []
        step.g.register_forward_hook(lambda module, given, page, drawn=drawn: drawn.append(len(page)))
        measured = [go(step, batch(64, 4, seed=n), d) for n, d in enumerate((BOTH, LOCK_D, LOCK_G))]
        ends.append((measured, weights(step.g) + weights(step.d)))
        assert max(drawn) == 4 // parts  # that is what saves memory
        assert step.steps == 3
    for measured, end in ends[1:]:
        assert distance(end, ends[0][1]) < 1e-10
        for ours, whole in zip(measured, ends[0][0], strict=True):
            for name, value in whole.items():
                assert ours[name] == pytest.approx(value, rel=1e-6 if name.startswith("d/") else 1e-9), name


@pytest.mark.parametrize("norm", ["group", "instance", "none"])
@pytest.mark.parametrize("d_backward", ["separate", "joint"])
def test_a_stand_in_has_no_gradient_and_no_say_in_the_means(ranks: Ranks, norm: str, d_backward: str) -> None:
    """The sum over the pairs that were read is divided by the batch size, whatever fills the other slots."""
    seen = []
    pair, others = batch(128, 1), batch(128, 4, seed=7)
    full = tuple(torch.cat((x, y[1:])) for x, y in zip(pair, others, strict=True))
    for batch_size, given, good in ((1, pair, None), (4, full, torch.tensor([True, False, False, False]))):
        config = settings(
            norm=norm, data={"batch_size": batch_size}, loss={"d_backward": d_backward, "lambda_ssim": 3.0}
        )
        step = build(config, ranks, "fp64")
        gradients = captured(step)
        seen.append((read(step(*given, BOTH, bad=0, stop=False, good=good).reduced), gradients))
    (whole, all_of_it), (quarter, a_quarter) = seen
    assert distance(a_quarter["d"], [g / 4 for g in all_of_it["d"]]) < 1e-12
    assert quarter["pairs"] == whole["pairs"] == 1
    for name in ("loss/d_real", "loss/d_fake", "d/real", "d/fake"):
        assert quarter[name] == pytest.approx(whole[name], rel=1e-6 if name.startswith("d/") else 1e-12)


@pytest.mark.parametrize("good", [1, 0])
def test_one_readable_pair_or_none_trains_with_batch_norm_at_64_px(ranks: Ranks, good: int) -> None:
    """There BatchNorm needs two pairs: the stand-ins are pairs, too. They move the statistics and nothing else."""
    step = build(settings(generator={"ema": 0.5}), ranks)
    stats, gradients = statistics(step), captured(step)
    mask = torch.tensor([True, False]) if good else torch.tensor([False, False])
    measured = read(step(*batch(), BOTH, bad=2 - good, stop=False, good=mask).reduced)
    assert (measured["pairs"], measured["bad"], measured["nonfinite"]) == (good, 2 - good, 0)
    for net in "dg":
        assert any(bool(g.any()) for g in gradients[net]) == bool(good)
    assert not equal(statistics(step), stats)
    assert all(s.isfinite().all() for s in statistics(step))


@pytest.mark.parametrize(
    ("decay", "total", "factors"),
    [
        (0.0, 4, [1, 1, 1, 1]),
        (0.5, 4, [1, 1, 1, 0.5, 0]),
        (1.0, 4, [1, 0.75, 0.5, 0.25, 0]),
        (0.25, 8, [1] * 7 + [0.5]),
    ],
)
def test_learning_rates_are_a_function_of_the_step(
    ranks: Ranks, decay: float, total: int, factors: list[float]
) -> None:
    config = settings(norm="none", generator=QUICK, optim={"lr_g": 1e-3, "lr_d": 2e-3, "decay": decay})
    assert [learning_rate_factor(decay, n, total) for n in range(len(factors))] == factors
    step, seen = build(config, ranks, total=total), []
    step.learner_g.optimizer.register_step_pre_hook(lambda *_: seen.append(step.learner_g.rates[0].item()))
    step.learner_d.optimizer.register_step_pre_hook(lambda *_: seen.append(step.learner_d.rates[0].item()))
    for n in range(2):
        go(step, batch(seed=n))
    assert seen == [lr * f for f in factors[:2] for lr in (2e-3, 1e-3)]
    later = build(config, ranks, total=total)
    later.load_state_dict(step.state_dict())  # goes on where it was, not at the first step's rate
    go(later, batch())
    assert later.learner_g.rates[0].item() == 1e-3 * factors[2]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_u_net_in_an_enhancer_learns_with_its_own_share_of_the_rate(ranks: Ranks, share: float) -> None:
    network = {"width": 8, "detail": 8, "enhance": 8}
    optim = {"lr_g": 1e-3, "lr_d": 1e-3, "inner": share}
    step = build(settings(norm="none", generator=network, optim=optim), ranks)
    before = copy.deepcopy(step.g.state_dict())
    go(step, batch(128))
    moved = {n: (p.detach() - before[n]).abs().max().item() for n, p in step.g.named_parameters()}
    # Adam's first step is the rate itself, in the direction of the gradient
    for part, rate in (("enhancer.layers.4.", 1e-3), ("up.", share * 1e-3)):
        assert max(m for n, m in moved.items() if n.startswith(part)) == pytest.approx(rate, rel=0.01), part
    later = build(step.config, ranks)
    later.load_state_dict(copy.deepcopy(step.state_dict()))
    later.g.load_state_dict(step.g.state_dict())
    later.d.load_state_dict(step.d.state_dict())
    for one in (step, later):
        go(one, batch(128, seed=1))
    assert equal(list(step.g.parameters()), list(later.g.parameters()))


def test_a_step_that_is_no_longer_used_gives_its_memory_back(ranks: Ranks) -> None:
    """Accelerate would keep each network that it has prepared."""
    step = build(settings(), ranks)
    go(step, batch())
    nets = [weakref.ref(net) for net in step.modules().values()]
    del step
    gc.collect()
    assert [net() for net in nets] == [None, None]


# ---------------------------------------------------------------- the averaged generator


def test_the_average_follows_its_formula_with_the_warm_up(ranks: Ranks) -> None:
    step = build(settings(norm="none", generator={"ema": 0.3}), ranks, "fp64")
    average = weights(step.g)
    for n, decision in enumerate((BOTH, LOCK_D, LOCK_G, BOTH, BOTH)):
        go(step, batch(seed=n), decision)
        updates = (1, 2, 2, 3, 4)[n]
        if decision.train_g:
            decay = min(0.3, (1 + updates) / (10 + updates))  # 2/11, 3/12, 4/13 = 0.308: then 0.3 rules
            average = [decay * a + (1 - decay) * w for a, w in zip(average, weights(step.g), strict=True)]
        assert distance(weights(step.ema), average) < 1e-12
    assert step.drawing is step.ema
    assert build(settings(norm="none"), ranks).drawing.training


def test_the_average_has_norm_statistics_of_its_own(ranks: Ranks) -> None:
    step = build(settings(generator={"ema": 0.9}), ranks, "fp64")
    expected = copy.deepcopy(step.ema)
    for n in range(2):
        go(step, batch(seed=n))
        with torch.no_grad():  # the statistics are those of the averaged weights on the step's lines
            for e, a in zip(expected.parameters(), step.ema.parameters(), strict=True):
                e.copy_(a)
            expected(batch(seed=n)[0])
    statistics_of = [dict(net.named_buffers()) for net in (step.ema, expected, step.g)]
    for name, value in statistics_of[0].items():
        assert torch.allclose(value, statistics_of[1][name], rtol=1e-10), name
        if "running" in name:
            assert not torch.allclose(value, statistics_of[2][name], rtol=1e-6), name


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_training_does_not_feel_the_average(ranks: Ranks, norm: str) -> None:
    ends = []
    for ema in (0.0, 0.9):
        step = build(settings(norm=norm, generator={"dropout": 0.5, "detail": 8, "noise": 1, "ema": ema}), ranks)
        torch.manual_seed(5)
        for n in range(2):
            go(step, batch(seed=n))
        ends.append((weights(step.g) + weights(step.d), torch.get_rng_state()))
        assert ("ema" in step.modules()) == (ema > 0)
    assert equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


# ---------------------------------------------------------------- saved and loaded


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_a_loaded_step_goes_on_bit_for_bit(ranks: Ranks, precision: str) -> None:
    config = settings(generator={"dropout": 0.5, "ema": 0.9} | (QUICK if precision == "fp16" else {}))

    def on(step: Step) -> list[Tensor]:
        torch.manual_seed(9)
        go(step, batch(seed=2))
        return [t for net in step.modules().values() for t in net.state_dict().values()]

    step = build(config, ranks, precision)
    go(step, batch(seed=1))
    networks = {n: copy.deepcopy(net.state_dict()) for n, net in step.modules().items()}
    state = copy.deepcopy(step.state_dict())
    other = build(config, ranks, precision, seed=77)
    for name, net in other.modules().items():
        net.load_state_dict(networks[name])
    other.load_state_dict(state)
    assert other.updates_g == step.updates_g == 1
    assert equal(on(step), on(other))
    assert step.learner_g.scaler.state_dict() == other.learner_g.scaler.state_dict()


def test_read_takes_means_over_pairs() -> None:
    sums = torch.tensor([float(i + 1) for i in range(len(MEANS))] + [7.0, 8.0, 4.0, 0.0, 0.0, 0.0])
    values = read(sums.double())
    assert values["loss/d_real"] == 0.25
    assert values["loss/d"] == 0.25 + 0.5
    assert (values["norm/d"], values["norm/g"], values["pairs"]) == (7, 8, 4)
