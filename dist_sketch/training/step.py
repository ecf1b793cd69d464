"""One training step: D's turn, then G's. Owns both optimizers, the precision, the finite check and G's moving average.

    fake = G(line)
    D's turn:  loss_D = BCE(D(line, sketch), 1) + BCE(D(line, fake), 0);  update D
    G's turn:  loss_G = scale * (BCE(D(line, fake), 1) + lambda * L1(fake, sketch) [+ lambda_ssim * (1 - SSIM)])
               update G

A locked network is only evaluated, without gradients, so that its loss is still measured.

With `train.accumulate` a rank splits its share of the batch into micro-batches: each turn goes through all of them
before its update, and averages the gradients over the ranks once. G then draws again in its own turn, because keeping
all graphs from D's turn would use the memory that accumulation saves.
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

# What a step measures: means over this rank's pairs, gradient norms, counts and flags.
MEANS = ("loss/d_real", "loss/d_fake", "loss/g", "loss/g_bce", "loss/g_l1", "loss/g_ssim", "d/real", "d/fake")
NORMS = ("norm/d", "norm/g")  # gradient norms; equal on all ranks
COUNTS = ("pairs", "nonfinite", "bad", "stop")
NAMES = (*MEANS, *NORMS, *COUNTS)

STATEFUL = ("optimizer_g", "optimizer_d", "scaler_g", "scaler_d")  # attributes of a `Step` with a state of their own


Measures = dict[str, Tensor]  # by name: weighted sums over a rank's micro-batches


class Measured(NamedTuple):
    """What a step measured; still on the device."""

    reduced: Tensor  # the values of `NAMES`, summed over the ranks: float64 (len(NAMES),)
    own_nonfinite: Tensor  # whether a loss on this rank was not finite: bool ()


class MicroBatch(NamedTuple):
    """The pairs of one forward and backward pass."""

    line: Tensor
    sketch: Tensor
    weight: float  # of its mean loss in the mean over the rank's share of the batch
    last: bool  # only the last backward averages the gradients over the ranks


class Step:
    """Both networks and everything that changes them.

    Args:
        precision: "no", "bf16", "fp16" or "fp64", as `resolve_precision` returns it.
        total: number of steps of the whole run, for the decay of the learning rates.
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
        # fused: the only Adam with `found_inf`, which skips a bad step without waiting for the device
        self.optimizer_g = torch.optim.Adam(self.g.parameters(), config.optim.lr_g, betas, fused=True)
        self.optimizer_d = torch.optim.Adam(self.d.parameters(), config.optim.lr_d, betas, fused=True)
        # One scaler for each network: an overflow of one network must not change the other's scale.
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
        """The generator that draws: the moving average if there is one."""
        return self.g if self.ema is None else self.ema

    def __call__(
        self, line: Tensor, sketch: Tensor, decision: Decision, *, bad: int, stop: bool, blank: bool = False
    ) -> Measured:
        """One step on this rank's share of the global batch.

        Args:
            line: (B, C, H, W) in [-1, 1], on the device; `sketch` likewise. B may be less than the rank's share; the
                loss is still divided by the full share.
            bad: number of samples that the loader left out of this batch.
            stop: whether this process was asked to stop.
            blank: all samples were bad: `line` and `sketch` are empty pages whose weight is 0.
        """
        factor = learning_rate_factor(self.config.optim.decay, self.steps, self.total)
        self.optimizer_g.param_groups[0]["lr"] = self.config.optim.lr_g * factor
        self.optimizer_d.param_groups[0]["lr"] = self.config.optim.lr_d * factor
        batches = self._split(line, sketch, blank)
        statistics = torch.cat(self.statistics) if self.statistics else None
        fake = self._draw(batches[0], decision.train_g) if len(batches) == 1 else None  # used in both turns
        measured: Measures = {}
        self._turn_d(batches, fake, decision.train_d, measured)
        self._turn_g(batches, fake, decision, measured)
        if decision.train_g:
            self._average(batches)
        result = self._reduce(measured, 0 if blank else len(line), bad, stop)
        if statistics is not None:  # blank pages and NaN must not enter the running statistics
            skipped = (result.reduced[NAMES.index("nonfinite")] > 0) | blank
            now = torch.cat(self.statistics)
            self.set_statistics(torch.where(skipped | ~now.isfinite(), statistics, now))
        self.steps += 1
        return result

    def _split(self, line: Tensor, sketch: Tensor, blank: bool) -> list[MicroBatch]:
        line, sketch = (x.to(self.dtype, memory_format=torch.channels_last) for x in (line, sketch))
        size = self.share // self.config.train.accumulate
        pieces = list(zip(line.split(size), sketch.split(size), strict=True))
        return [
            MicroBatch(a, b, 0.0 if blank else len(a) / self.share, last=n == len(pieces))
            for n, (a, b) in enumerate(pieces, 1)
        ]

    def _draw(self, batch: MicroBatch, train: bool) -> Tensor:
        """G's sketch of a micro-batch; with `train` it can be differentiated."""
        with self._autocast(), torch.set_grad_enabled(train):
            return (self.ddp_g if train else self.g)(batch.line)

    def _turn_d(self, batches: list[MicroBatch], fake: Tensor | None, train: bool, measured: Measures) -> None:
        """Trains D, or measures a locked one."""
        self.d.requires_grad_(train)
        self.optimizer_d.zero_grad()
        for batch in batches:
            if train:
                self._backward_d(batch, self._draw(batch, False) if fake is None else fake.detach(), measured)
                continue
            # The fake term of a locked D is measured in G's turn, where D is evaluated anyway.
            with self._autocast(), torch.no_grad():
                logits = self.d(batch.line, batch.sketch)
            _add(measured, _terms("real", losses.bce(logits, 1.0), logits), batch.weight)
        if train:
            _add(measured, {"norm/d": self._update(self.optimizer_d, self.scaler_d)})

    def _backward_d(self, batch: MicroBatch, fake: Tensor, measured: Measures) -> None:
        separate = self.config.loss.d_backward == "separate"
        with nullcontext() if batch.last and not separate else self.ranks.no_sync(self.ddp_d):
            with self._autocast():
                real_logits = self.ddp_d(batch.line, batch.sketch)
            loss = loss_real = losses.bce(real_logits, 1.0)
            if separate:  # frees the real term's graph before the fake term's is built
                self.scaler_d.scale(_nan_if_not_finite(loss_real) * batch.weight).backward()
        with nullcontext() if batch.last else self.ranks.no_sync(self.ddp_d):
            with self._autocast():
                fake_logits = self.ddp_d(batch.line, fake)
            loss_fake = losses.bce(fake_logits, 0.0)
            loss = loss_fake if separate else loss_real + loss_fake
            self.scaler_d.scale(_nan_if_not_finite(loss) * batch.weight).backward()
        _add(measured, _terms("real", loss_real, real_logits) | _terms("fake", loss_fake, fake_logits), batch.weight)

    def _turn_g(self, batches: list[MicroBatch], fake: Tensor | None, decision: Decision, measured: Measures) -> None:
        """Trains G, or measures a locked one."""
        # D is frozen and used without DDP: else G's backward would also compute and all-reduce D's gradients.
        self.d.requires_grad_(False)
        self.optimizer_g.zero_grad()
        for batch in batches:
            # The forward pass must also be inside, because DDP prepares the reduction there.
            with nullcontext() if batch.last else self.ranks.no_sync(self.ddp_g):
                self._backward_g(
                    batch, self._draw(batch, decision.train_g) if fake is None else fake, decision, measured
                )
        if decision.train_g:
            _add(measured, {"norm/g": self._update(self.optimizer_g, self.scaler_g)})

    def _backward_g(self, batch: MicroBatch, fake: Tensor, decision: Decision, measured: Measures) -> None:
        with self._autocast(), torch.set_grad_enabled(decision.train_g):
            logits = self.d(batch.line, fake)
        c = self.config.loss
        terms = losses.generator_loss(logits, fake, batch.sketch, c.lambda_l1, c.lambda_ssim, c.scale)
        if decision.train_g:
            self.scaler_g.scale(_nan_if_not_finite(terms["loss/g"]) * batch.weight).backward()
        _add(measured, terms, batch.weight)
        if not decision.train_d:
            _add(measured, _terms("fake", losses.bce(logits.detach(), 0.0), logits), batch.weight)

    def _update(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Tensor:
        """Updates one network, unless a gradient is not finite. Returns the gradients' norm before clipping.

        The gradients are already averaged over the ranks, so a NaN on one rank makes all ranks skip the update.
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
    def _average(self, batches: list[MicroBatch]) -> None:
        """Updates G's moving average and, by a forward pass, the average's own BatchNorm statistics.

        The live network's statistics do not fit the averaged weights: the pages would be tinted.
        """
        self.updates_g += 1
        if self.ema is None:
            return
        # Warm-up: otherwise the random initial weights would stay in the average for long.
        decay = min(self.config.generator.ema, (1 + self.updates_g) / (10 + self.updates_g))
        for average, live in zip(self.ema.parameters(), self.g.parameters(), strict=True):
            average.lerp_(live, 1 - decay)
        if not any(True for _ in self.ema.buffers()):
            return
        self.ema.train()
        self.ema.training = False  # `Generator` itself uses this flag only to choose random or fixed noise
        for module in self.ema.modules():
            if isinstance(module, nn.Dropout2d):
                module.eval()  # no dropout: it would use up random numbers, so that an average would change the run
        for batch in batches:
            with self._autocast():
                self.ema(batch.line)

    def _reduce(self, measured: Measures, pairs: int, bad: int, stop: bool) -> Measured:
        zero = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        values = torch.stack([measured.get(n, zero) for n in (*MEANS, *NORMS)])
        own_nonfinite = (~values[: len(MEANS)].isfinite()).any()
        values[: len(MEANS)] *= self.share  # from means over the share to sums over pairs
        values[len(MEANS) :] /= self.ranks.world_size  # equal on all ranks, so divided before the sum
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

    @contextmanager
    def averaged(self) -> Iterator[Tensor]:
        """Inside the block the running statistics are the mean over the ranks; yields this rank's own, shape (N,).

        For evaluating and saving. Afterwards each rank has its own again, so that neither changes the training.
        """
        own = torch.cat([torch.empty(0, device=self.ranks.device), *self.statistics])
        if len(own) and self.ranks.world_size > 1:
            self.set_statistics(self.ranks.sum(own.double()) / self.ranks.world_size)
        try:
            yield own
        finally:
            self.set_statistics(own)

    def set_statistics(self, values: Tensor) -> None:
        """Sets this rank's running statistics to `values`, shape (N,), as `averaged` yields them."""
        for buffer, part in zip(self.statistics, values.split([b.numel() for b in self.statistics]), strict=True):
            buffer.copy_(part)

    def state_dict(self) -> dict[str, Any]:
        """Optimizers, scalers and counters; the networks are saved separately."""
        own = {name: getattr(self, name).state_dict() for name in STATEFUL}
        return own | {"steps": self.steps, "updates_g": self.updates_g}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.steps, self.updates_g = state["steps"], state["updates_g"]


def _nan_if_not_finite(loss: Tensor) -> Tensor:
    """`loss`, with gradients that are NaN if it is not finite, so that every rank skips the update.

    Without this they could be finite: the gradients of L1 are signs, and those of a saturated logit are 0.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)


def _terms(half: str, loss: Tensor, logits: Tensor) -> Measures:
    """The loss and the mean probability of D's answer to the real or the fake half."""
    return {f"loss/d_{half}": loss, f"d/{half}": logits.detach().float().sigmoid().mean()}


def _add(measured: Measures, terms: Measures, weight: float = 1.0) -> None:
    for name, value in terms.items():
        term = value.detach().double() * weight
        measured[name] = measured[name] + term if name in measured else term


def learning_rate_factor(decay: float, step: int, total: int) -> float:
    """The factor of the learning rates in step `step` (from 0) of a run of `total` steps.

    It is 1, then falls linearly to 0 over the last fraction `decay` (0 to 1) of the run.
    """
    return min(1.0, max(0, total - step) / (decay * total)) if decay else 1.0


def read(reduced: Tensor) -> dict[str, float]:
    """A step's reduced values as plain numbers: means over the global batch, norms, counts. Waits for the device.

    `overflow_d` and `overflow_g` are 1 if all losses were finite, but that network's gradients were not.
    """
    values = dict(zip(NAMES, reduced.tolist(), strict=True))
    pairs = values["pairs"] or math.nan
    means = {n: values[n] / pairs for n in MEANS}
    means["loss/d"] = means["loss/d_real"] + means["loss/d_fake"]
    for net in "dg":
        means[f"overflow_{net}"] = float(not values["nonfinite"] and not math.isfinite(values[f"norm/{net}"]))
    return values | means
