"""One training step: D's turn, then G's. Owns both optimizers, precision, the finite check and the averaged generator.

    fake = G(line)
    D's turn:  loss_D = BCE(D(line, sketch), 1) + BCE(D(line, fake), 0);  update D
    G's turn:  loss_G = scale * (BCE(D(line, fake), 1) + lambda * L1(fake, sketch));  update G

A locked network is forwarded without gradients, so that its loss goes on being measured.
"""

import copy
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dist_sketch import losses, networks
from dist_sketch.conditional import Decision
from dist_sketch.config import Config
from dist_sketch.ranks import Ranks

# What a step measures: sums over this rank's pairs, then counts and flags.
MEANS = ("loss/d_real", "loss/d_fake", "loss/g", "loss/g_bce", "loss/g_l1", "d/real", "d/fake")
NORMS = ("norm/d", "norm/g")  # gradient norms; equal on all ranks
COUNTS = ("pairs", "nonfinite", "bad", "stop")
NAMES = (*MEANS, *NORMS, *COUNTS)

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(wanted: str, device: torch.device) -> str:
    """The arithmetic that "auto" means on `device`: bf16 where it is fast, else "no" (float32)."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "no"
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and fast else "no"


class Step:
    """Both networks and all that changes them.

    Args:
        precision: "no", "bf16", "fp16" or "fp64", as `resolve_precision` returns it.
    """

    def __init__(self, config: Config, ranks: Ranks, precision: str):
        self.config, self.ranks = config, ranks
        device = ranks.device
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.autocast_dtype = AUTOCAST.get(precision)
        self.g = networks.generator(config).to(device, self.dtype).to(memory_format=torch.channels_last)
        self.d = networks.discriminator(config).to(device, self.dtype).to(memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.g).requires_grad_(False) if config.generator.ema else None
        self.ddp_g, self.ddp_d = ranks.prepare(self.g), ranks.prepare(self.d)
        betas = (config.optim.beta1, config.optim.beta2)
        # fused: the only Adam that takes `found_inf`, so that a bad step is skipped without asking the host
        self.optimizer_g = torch.optim.Adam(self.g.parameters(), config.optim.lr_g, betas, fused=True)
        self.optimizer_d = torch.optim.Adam(self.d.parameters(), config.optim.lr_d, betas, fused=True)
        # One scaler a network: a shared one would be rescaled by the other network's overflow.
        self.scaler_g = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.scaler_d = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.updates_g = 0
        self.statistics = [b for m in self.modules().values() for b in m.buffers() if b.is_floating_point()]

    @property
    def drawing(self) -> nn.Module:
        """The generator that draws: the averaged one if there is one."""
        return self.g if self.ema is None else self.ema

    def __call__(self, line: Tensor, sketch: Tensor, decision: Decision, *, bad: int, stop: bool) -> Tensor:
        """One step on this rank's share of the global batch.

        Args:
            line: (B, C, H, W) in [-1, 1], on the device; `sketch` likewise.
            bad: samples that the loader had to leave out of this batch.
            stop: whether this process was asked to stop.

        Returns:
            The values of `NAMES`, reduced over all ranks (not yet read by the host): float64 (len(NAMES),).
        """
        line, sketch = self._ready(line), self._ready(sketch)
        statistics = torch.cat(self.statistics) if self.statistics else None
        with self._autocast(), torch.set_grad_enabled(decision.train_g):
            fake = (self.ddp_g if decision.train_g else self.g)(line)
        measured = self._turn_d(line, sketch, fake.detach()) if decision.train_d else self._measure_d(line, sketch)
        with torch.set_grad_enabled(decision.train_g):
            measured |= self._turn_g(line, sketch, fake, decision)
        if decision.train_g:
            self._average(line)
        vector = self._reduce(measured, len(line), bad, stop)
        if statistics is not None:
            self._keep_statistics(statistics, skipped=vector[NAMES.index("nonfinite")] > 0)
        return vector

    def _turn_d(self, line: Tensor, sketch: Tensor, fake: Tensor) -> dict[str, Tensor]:
        self.d.requires_grad_(True)
        self.optimizer_d.zero_grad()
        separate = self.config.loss.d_backward == "separate"
        with self.ranks.no_sync(self.ddp_d) if separate else nullcontext():
            with self._autocast():
                real_logits = self.ddp_d(line, sketch)
            loss = loss_real = losses.bce(real_logits, 1.0)
            if separate:  # frees the real term's graph before the fake term's is built
                self.scaler_d.scale(_spoilt(loss_real)).backward()
        with self._autocast():
            fake_logits = self.ddp_d(line, fake)
        loss_fake = losses.bce(fake_logits, 0.0)
        loss = loss_fake if separate else loss_real + loss_fake
        self.scaler_d.scale(_spoilt(loss)).backward()
        norm = self._update(self.optimizer_d, self.scaler_d)
        return {
            "loss/d_real": loss_real,
            "d/real": real_logits.float().sigmoid().mean(),
            "loss/d_fake": loss_fake,
            "d/fake": fake_logits.float().sigmoid().mean(),
            "norm/d": norm,
        }

    @torch.no_grad()
    def _measure_d(self, line: Tensor, sketch: Tensor) -> dict[str, Tensor]:
        """A locked D's real term; its fake term comes from G's turn for nothing."""
        with self._autocast():
            logits = self.d(line, sketch)
        return {"loss/d_real": losses.bce(logits, 1.0), "d/real": logits.float().sigmoid().mean()}

    def _turn_g(self, line: Tensor, sketch: Tensor, fake: Tensor, decision: Decision) -> dict[str, Tensor]:
        # Frozen and bare: a backward through the wrapped D would all-reduce D's gradients and leave them behind.
        self.d.requires_grad_(False)
        with self._autocast():
            logits = self.d(line, fake)
        c = self.config.loss
        loss = losses.generator_loss(logits, fake, sketch, lambda_l1=c.lambda_l1, scale=c.scale)
        measured = {"loss/g": loss.total, "loss/g_bce": loss.bce, "loss/g_l1": loss.l1}
        if decision.train_g:
            self.optimizer_g.zero_grad()
            self.scaler_g.scale(_spoilt(loss.total)).backward()
            measured["norm/g"] = self._update(self.optimizer_g, self.scaler_g)
        if not decision.train_d:
            fake_logits = logits.detach()
            measured |= {"loss/d_fake": losses.bce(fake_logits, 0.0), "d/fake": fake_logits.float().sigmoid().mean()}
        return measured

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
    def _average(self, line: Tensor) -> None:
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
        self.ema.train()
        for module in self.ema.modules():
            if isinstance(module, nn.Dropout2d):
                module.eval()  # it draws without dropout; and no random number may depend on the average's existence
        with self._autocast():
            self.ema(line)

    def _keep_statistics(self, before: Tensor, skipped: Tensor) -> None:
        """Puts the running statistics back if the step was not finite: a NaN would stay in them for ever."""
        now = torch.cat(self.statistics)
        kept = torch.where(skipped | ~now.isfinite(), before, now)
        for buffer, part in zip(self.statistics, kept.split([b.numel() for b in self.statistics]), strict=True):
            buffer.copy_(part)

    def _reduce(self, measured: dict[str, Tensor], pairs: int, bad: int, stop: bool) -> Tensor:
        zero = torch.zeros((), device=self.ranks.device)
        values = torch.stack([measured.get(n, zero).detach().double() for n in (*MEANS, *NORMS)])
        nonfinite = (~values.isfinite()).any().double()
        values[: len(MEANS)] *= pairs
        values[len(MEANS) :] /= self.ranks.world_size  # norms are equal on all ranks: the sum is the norm again
        counts = torch.tensor([pairs, 0, bad, stop], dtype=torch.float64).to(values.device, non_blocking=True)
        counts[1] = nonfinite
        return self.ranks.sum(torch.cat((values, counts)))

    def _ready(self, image: Tensor) -> Tensor:
        return image.to(self.dtype, memory_format=torch.channels_last)

    def _autocast(self) -> torch.autocast:
        dtype = self.autocast_dtype
        return torch.autocast(self.ranks.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def modules(self) -> dict[str, nn.Module]:
        """The networks by the name under which they are saved."""
        named: dict[str, nn.Module] = {"generator": self.g, "discriminator": self.d}
        return named if self.ema is None else named | {"ema": self.ema}

    def average_buffers(self) -> None:
        """Makes the ranks' running statistics one, before evaluating or saving."""
        for module in self.modules().values():
            self.ranks.average_buffers(module)

    def state_dict(self) -> dict[str, Any]:
        """Optimizers, scalers and counters; the networks are saved apart."""
        return {
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "scaler_g": self.scaler_g.state_dict(),
            "scaler_d": self.scaler_d.state_dict(),
            "updates_g": self.updates_g,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in ("optimizer_g", "optimizer_d", "scaler_g", "scaler_d"):
            getattr(self, name).load_state_dict(state[name])
        self.updates_g = state["updates_g"]


def _spoilt(loss: Tensor) -> Tensor:
    """`loss`; if it is not finite, its gradients are not either, so that every rank skips this update.

    They could be finite: L1's are signs, and those of a saturated logit are 0.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)


def read(vector: Tensor) -> dict[str, float]:
    """A step's reduced vector as the host logs it: means over the global batch, norms, counts. Waits for the device."""
    values = dict(zip(NAMES, vector.tolist(), strict=True))
    pairs = values["pairs"] or math.nan
    means = {n: values[n] / pairs for n in MEANS}
    means["loss/d"] = means["loss/d_real"] + means["loss/d_fake"]
    return values | means
