"""One training step: D's turn, then G's. Owns both optimizers, precision, the finite check and the averaged generator.

    fake = G(line)
    D's turn:  loss_D = BCE(D(line, sketch), 1) + BCE(D(line, fake), 0);  update D
    G's turn:  loss_G = scale * (BCE(D(line, fake), 1) + lambda * L1(fake, sketch) [+ lambda_ssim * (1 - SSIM)])
               update G

A locked network is forwarded without gradients, so that its loss goes on being measured.

A rank may work through its share of the batch in parts (`train.accumulate`): each turn then goes through all of them
before its update, and averages gradients over the ranks once. G draws anew in its turn: its graphs for all parts would
take the memory that the parts are there to save.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dist_sketch.core.config import Config
from dist_sketch.core.precision import AUTOCAST
from dist_sketch.core.ranks import Ranks
from dist_sketch.model import losses, networks
from dist_sketch.training.policy import Decision

# What a step measures: sums over this rank's pairs, then counts and flags.
MEANS = ("loss/d_real", "loss/d_fake", "loss/g", "loss/g_bce", "loss/g_l1", "loss/g_ssim", "d/real", "d/fake")


NORMS = ("norm/d", "norm/g")  # gradient norms; equal on all ranks


COUNTS = ("pairs", "nonfinite", "bad", "stop")


NAMES = (*MEANS, *NORMS, *COUNTS)


class Measured(NamedTuple):
    """What a step measured; still on the device."""

    reduced: Tensor  # the values of `NAMES`, summed over the ranks: float64 (len(NAMES),)
    own_nonfinite: Tensor  # whether a loss on this rank was not finite: bool ()


class MicroBatch(NamedTuple):
    """One forward and backward pass's pairs."""

    line: Tensor
    sketch: Tensor
    weight: float  # of its mean loss in the mean over the rank's share
    last: bool  # its backward averages the gradients over the ranks


Measures = dict[str, Tensor]  # by name: sums over a rank's parts


class Step:
    """Both networks and all that changes them.

    Args:
        precision: "no", "bf16", "fp16" or "fp64", as `resolve_precision` returns it.
        total: steps of the whole run, for the decay of the learning rates.
    """

    def __init__(self, config: Config, ranks: Ranks, precision: str, total: int = 0):
        self.config, self.ranks = config, ranks
        device = ranks.device
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.autocast_dtype = AUTOCAST.get(precision)
        self.g, self.d = self._build(networks.generator(config)), self._build(networks.discriminator(config))
        self.ema = copy.deepcopy(self.g).requires_grad_(False) if config.generator.ema else None
        self.ddp_g, self.ddp_d = ranks.prepare(self.g), ranks.prepare(self.d)
        betas = (config.optim.beta1, config.optim.beta2)
        # fused: the only Adam that takes `found_inf`, so that a bad step is skipped without asking the host
        self.optimizer_g = torch.optim.Adam(self.g.parameters(), config.optim.lr_g, betas, fused=True)
        self.optimizer_d = torch.optim.Adam(self.d.parameters(), config.optim.lr_d, betas, fused=True)
        # One scaler a network: a shared one would be rescaled by the other network's overflow.
        self.scaler_g = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.scaler_d = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.steps = self.updates_g = 0
        assert total or not config.optim.decay
        self.total = total
        self.share = config.data.batch_size // ranks.world_size
        self.statistics = [b for m in self.modules().values() for b in m.buffers() if b.is_floating_point()]

    def _build(self, net: nn.Module) -> nn.Module:
        if self.config.train.sync_batchnorm:
            net = self.ranks.sync_batchnorm(net)
        return net.to(self.ranks.device, self.dtype).to(memory_format=torch.channels_last)

    @property
    def drawing(self) -> nn.Module:
        """The generator that draws: the averaged one if there is one."""
        return self.g if self.ema is None else self.ema

    def __call__(
        self, line: Tensor, sketch: Tensor, decision: Decision, *, bad: int, stop: bool, blank: bool = False
    ) -> Measured:
        """One step on this rank's share of the global batch.

        Args:
            line: (B, C, H, W) in [-1, 1], on the device; `sketch` likewise. B may be less than the share: what is
                missing has no gradient, whichever rank misses it.
            bad: samples that the loader had to leave out of this batch.
            stop: whether this process was asked to stop.
            blank: all were bad: `line` and `sketch` only stand in for them, and count for nothing.
        """
        self._set_learning_rates()
        parts = self._parts(line, sketch, blank)
        statistics = torch.cat(self.statistics) if self.statistics else None
        fake = self._draw(parts[0], decision.train_g) if len(parts) == 1 else None  # once, for both turns
        measured: Measures = {}
        self._turn_d(parts, fake, decision.train_d, measured)
        self._turn_g(parts, fake, decision, measured)
        if decision.train_g:
            self._average(parts)
        result = self._reduce(measured, 0 if blank else len(line), bad, stop)
        if statistics is not None:
            self._keep_statistics(statistics, skipped=(result.reduced[NAMES.index("nonfinite")] > 0) | blank)
        self.steps += 1
        return result

    def _set_learning_rates(self) -> None:
        factor = learning_rate_factor(self.config.optim.decay, self.steps, self.total)
        self.optimizer_g.param_groups[0]["lr"] = self.config.optim.lr_g * factor
        self.optimizer_d.param_groups[0]["lr"] = self.config.optim.lr_d * factor

    def _parts(self, line: Tensor, sketch: Tensor, blank: bool) -> list[MicroBatch]:
        line, sketch = (x.to(self.dtype, memory_format=torch.channels_last) for x in (line, sketch))
        size = self.share // self.config.train.accumulate
        pieces = list(zip(line.split(size), sketch.split(size), strict=True))
        return [
            MicroBatch(a, b, 0.0 if blank else len(a) / self.share, last=n == len(pieces))
            for n, (a, b) in enumerate(pieces, 1)
        ]

    def _draw(self, part: MicroBatch, train: bool) -> Tensor:
        """G's sketch of a part; with `train` it can be differentiated."""
        with self._autocast(), torch.set_grad_enabled(train):
            return (self.ddp_g if train else self.g)(part.line)

    def _turn_d(self, parts: list[MicroBatch], fake: Tensor | None, train: bool, measured: Measures) -> None:
        """Trains D, or measures a locked one."""
        self.d.requires_grad_(train)
        self.optimizer_d.zero_grad()
        for part in parts:
            if train:
                self._backward_d(part, self._draw(part, False) if fake is None else fake.detach(), measured)
            else:
                self._measure_d(part, measured)
        if train:
            _add(measured, {"norm/d": self._update(self.optimizer_d, self.scaler_d)})

    def _backward_d(self, part: MicroBatch, fake: Tensor, measured: Measures) -> None:
        separate = self.config.loss.d_backward == "separate"
        with nullcontext() if part.last and not separate else self.ranks.no_sync(self.ddp_d):
            with self._autocast():
                real_logits = self.ddp_d(part.line, part.sketch)
            loss = loss_real = losses.bce(real_logits, 1.0)
            if separate:  # frees the real term's graph before the fake term's is built
                self.scaler_d.scale(_spoilt(loss_real) * part.weight).backward()
        with nullcontext() if part.last else self.ranks.no_sync(self.ddp_d):
            with self._autocast():
                fake_logits = self.ddp_d(part.line, fake)
            loss_fake = losses.bce(fake_logits, 0.0)
            loss = loss_fake if separate else loss_real + loss_fake
            self.scaler_d.scale(_spoilt(loss) * part.weight).backward()
        _add(measured, _terms("real", loss_real, real_logits) | _terms("fake", loss_fake, fake_logits), part.weight)

    @torch.no_grad()
    def _measure_d(self, part: MicroBatch, measured: Measures) -> None:
        """A locked D's real term; its fake term comes from G's turn for nothing."""
        with self._autocast():
            logits = self.d(part.line, part.sketch)
        _add(measured, _terms("real", losses.bce(logits, 1.0), logits), part.weight)

    def _turn_g(self, parts: list[MicroBatch], fake: Tensor | None, decision: Decision, measured: Measures) -> None:
        """Trains G, or measures a locked one."""
        # Frozen and bare: a backward through the wrapped D would all-reduce D's gradients and leave them behind.
        self.d.requires_grad_(False)
        self.optimizer_g.zero_grad()
        for part in parts:
            # The forward pass, too, must be inside: DDP prepares the reduction there.
            with nullcontext() if part.last else self.ranks.no_sync(self.ddp_g):
                self._backward_g(part, self._draw(part, decision.train_g) if fake is None else fake, decision, measured)
        if decision.train_g:
            _add(measured, {"norm/g": self._update(self.optimizer_g, self.scaler_g)})

    def _backward_g(self, part: MicroBatch, fake: Tensor, decision: Decision, measured: Measures) -> None:
        with self._autocast(), torch.set_grad_enabled(decision.train_g):
            logits = self.d(part.line, fake)
        c = self.config.loss
        loss = losses.generator_loss(logits, fake, part.sketch, c.lambda_l1, c.lambda_ssim, c.scale)
        if decision.train_g:
            self.scaler_g.scale(_spoilt(loss.total) * part.weight).backward()
        terms = {"loss/g": loss.total, "loss/g_bce": loss.bce, "loss/g_l1": loss.l1}
        _add(measured, terms if loss.ssim is None else terms | {"loss/g_ssim": loss.ssim}, part.weight)
        if not decision.train_d:
            _add(measured, _terms("fake", losses.bce(logits.detach(), 0.0), logits), part.weight)

    def _update(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Tensor:
        """Updates one network, unless a gradient is not finite. Returns the gradients' norm before clipping.

        The gradients are already averaged over the ranks, so that a NaN on one rank makes all ranks skip alike.
        """
        scaler.unscale_(optimizer)
        parameters = optimizer.param_groups[0]["params"]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.config.optim.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip_norm, norm)
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return norm

    @torch.no_grad()
    def _average(self, parts: list[MicroBatch]) -> None:
        """Moves the averaged generator and, by a forward pass of its own, its norm statistics.

        Statistics borrowed from the live net do not fit averaged weights: pages come out tinted.
        """
        self.updates_g += 1
        if self.ema is None:
            return
        # The warm-up keeps the random initial weights from lingering in the average.
        decay = min(self.config.generator.ema, (1 + self.updates_g) / (10 + self.updates_g))
        for average, live in zip(self.ema.parameters(), self.g.parameters(), strict=True):
            average.lerp_(live, 1 - decay)
        if not any(True for _ in self.ema.buffers()):
            return
        self.ema.train()
        self.ema.training = False  # the network itself, which draws noise, has no statistics
        for module in self.ema.modules():
            if isinstance(module, nn.Dropout2d):
                module.eval()  # it draws without dropout; and no random number may depend on the average's existence
        for part in parts:
            with self._autocast():
                self.ema(part.line)

    def _keep_statistics(self, before: Tensor, skipped: Tensor) -> None:
        """Puts the running statistics back if the step was not finite, or blank: a NaN would stay in them for ever."""
        now = torch.cat(self.statistics)
        self.set_statistics(torch.where(skipped | ~now.isfinite(), before, now))

    def _reduce(self, measured: Measures, pairs: int, bad: int, stop: bool) -> Measured:
        zero = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        values = torch.stack([measured.get(n, zero) for n in (*MEANS, *NORMS)])
        own_nonfinite = (~values[: len(MEANS)].isfinite()).any()
        values[: len(MEANS)] *= self.share  # means over the share become sums over pairs
        values[len(MEANS) :] /= self.ranks.world_size  # norms are equal on all ranks: the sum is the norm again
        counts = torch.tensor([pairs, 0, bad, stop], dtype=torch.float64).to(values.device, non_blocking=True)
        counts[1] = own_nonfinite
        return Measured(self.ranks.sum(torch.cat((values, counts))), own_nonfinite)

    def _autocast(self) -> torch.autocast:
        dtype = self.autocast_dtype
        return torch.autocast(self.ranks.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def modules(self) -> dict[str, nn.Module]:
        """The networks by the name under which they are saved."""
        named: dict[str, nn.Module] = {"generator": self.g, "discriminator": self.d}
        return named if self.ema is None else named | {"ema": self.ema}

    def average_buffers(self) -> None:
        """Makes the ranks' running statistics one."""
        for module in self.modules().values():
            self.ranks.average_buffers(module)

    @contextmanager
    def averaged(self) -> Iterator[Tensor]:
        """Inside, the ranks' running statistics are their mean, to evaluate or to save; gives this rank's own (N,).

        Afterwards each rank has its own again: a look at the run, or a save of it, may not change it.
        """
        own = torch.cat([torch.empty(0, device=self.ranks.device), *self.statistics])
        self.average_buffers()
        try:
            yield own
        finally:
            self.set_statistics(own)

    def set_statistics(self, values: Tensor) -> None:
        """Puts back this rank's running statistics, as `averaged` gave them."""
        for buffer, part in zip(self.statistics, values.split([b.numel() for b in self.statistics]), strict=True):
            buffer.copy_(part)

    def state_dict(self) -> dict[str, Any]:
        """Optimizers, scalers and counters; the networks are saved apart."""
        return {
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "scaler_g": self.scaler_g.state_dict(),
            "scaler_d": self.scaler_d.state_dict(),
            "steps": self.steps,
            "updates_g": self.updates_g,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in ("optimizer_g", "optimizer_d", "scaler_g", "scaler_d"):
            getattr(self, name).load_state_dict(state[name])
        self.steps, self.updates_g = state["steps"], state["updates_g"]


def _spoilt(loss: Tensor) -> Tensor:
    """`loss`; if it is not finite, its gradients are not either, so that every rank skips this update.

    They could be finite: L1's are signs, and those of a saturated logit are 0.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)


def _terms(half: str, loss: Tensor, logits: Tensor) -> Measures:
    """What is told of D's answer to the real or the fake half."""
    return {f"loss/d_{half}": loss, f"d/{half}": logits.detach().float().sigmoid().mean()}


def _add(measured: Measures, terms: Measures, weight: float = 1.0) -> None:
    for name, value in terms.items():
        term = value.detach().double() * weight
        measured[name] = measured[name] + term if name in measured else term


def learning_rate_factor(decay: float, step: int, total: int) -> float:
    """What the learning rates are multiplied by in step `step`, counted from 0, of a run of `total` steps.

    1, then linearly to 0 in the last `decay` (0 to 1) of the run.
    """
    return min(1.0, max(0, total - step) / (decay * total)) if decay else 1.0


def read(reduced: Tensor) -> dict[str, float]:
    """A step's reduced values as the host logs them: means over the global batch, norms, counts. Waits for the device.

    `overflow_d` and `overflow_g` (0 or 1): all losses were finite, that network's gradients were not.
    """
    values = dict(zip(NAMES, reduced.tolist(), strict=True))
    pairs = values["pairs"] or math.nan
    means = {n: values[n] / pairs for n in MEANS}
    means["loss/d"] = means["loss/d_real"] + means["loss/d_fake"]
    for net in "dg":
        means[f"overflow_{net}"] = float(not values["nonfinite"] and not math.isfinite(values[f"norm/{net}"]))
    return values | means
