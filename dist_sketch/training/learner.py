"""One network with everything that changes it: half-precision copies, gradients, Adam, the scaler of fp16."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dist_sketch.core.config import OptimConfig
from dist_sketch.core.gradients import FlatGradients
from dist_sketch.core.precision import AUTOCAST
from dist_sketch.core.ranks import Ranks


class Learner:
    """Draws (or judges) with a network in the arithmetic of the training, and updates it.

    Nothing in `__call__`, `backward` and `update` asks the device for a value, and all tensors that outlive a step keep
    their addresses, so that a CUDA graph can hold them.

    Args:
        module: the network, on the device, in float32 or float64.
        precision: "no", "bf16", "fp16" or "fp64", as `resolve_precision` returns it.
        lr: first learning rate.
        groups: parameters, and the share of the learning rate with which they learn; default: all, with the whole rate.
    """

    def __init__(
        self,
        module: nn.Module,
        ranks: Ranks,
        precision: str,
        lr: float,
        optim: OptimConfig,
        groups: list[tuple[list[nn.Parameter], float]] | None = None,
    ):
        ranks.same_weights(module)
        device = ranks.device
        self.module, self._device, self._clip_norm = module, device, optim.clip_norm
        groups = groups or [(list(module.parameters()), 1.0)]
        self.optimizer = torch.optim.Adam(
            [{"params": parameters} for parameters, _ in groups],
            lr,
            (optim.beta1, optim.beta2),
            fused=True,  # the only Adam with `found_inf`, which skips a bad step without waiting for the device
            capturable=device.type == "cuda",
        )
        # Tensors, because a CUDA graph would keep the numbers; CUDA's Adam takes only float32.
        rates = torch.tensor([lr] * len(groups), dtype=torch.float32 if device.type == "cuda" else torch.float64)
        self.rates = rates.to(device).unbind()
        self._shares = [share for _, share in groups]
        self.set_rate(lr)
        self._begin_moments()
        # A scaler for each network: an overflow of one network must not change the other's scale.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.gradients = FlatGradients(module.parameters(), ranks)
        self._dtype = AUTOCAST.get(precision)
        # Autocast would convert each weight at each use, with two kernels a weight; one kernel converts them all.
        layers = module.named_modules() if self._dtype else ()
        convolutions = {n: m for n, m in layers if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)}
        self._full = {f"{n}.{name}": p for n, m in convolutions.items() for name, p in m.named_parameters()}
        self._half = {name: torch.empty_like(p, dtype=self._dtype).requires_grad_() for name, p in self._full.items()}

    def set_rate(self, lr: float) -> None:
        """Sets the learning rate."""
        for group, rate, share in zip(self.optimizer.param_groups, self.rates, self._shares, strict=True):
            group["lr"] = rate.fill_(lr * share)

    def _begin_moments(self) -> None:
        """Gives Adam the state that it would make in its first step, because a CUDA graph needs it before."""
        for p in self.module.parameters():
            if not self.optimizer.state[p]:
                zeros = {n: torch.zeros_like(p) for n in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=p.device), **zeros}

    def state(self) -> dict[str, list[Tensor]]:
        """All tensors that a step changes, by kind."""
        moments = {n: [state[n] for state in self.optimizer.state.values()] for n in ("step", "exp_avg", "exp_avg_sq")}
        return {"weights": list(self.module.parameters()), "buffers": list(self.module.buffers()), **moments}

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the weights into their half-precision copies."""
        if self._half:
            torch._foreach_copy_(list(self._half.values()), list(self._full.values()))

    def freeze(self, frozen: bool) -> None:
        """Whether a backward through this network computes no gradients of its weights."""
        for weight in (*self.module.parameters(), *self._half.values()):
            weight.requires_grad_(not frozen)

    def forget_gradients(self) -> None:
        """Begins a turn."""
        self.optimizer.zero_grad()
        for half in self._half.values():
            half.grad = None

    def autocast(self) -> torch.autocast:
        """The arithmetic of the training."""
        return torch.autocast(self._device.type, self._dtype or torch.bfloat16, enabled=self._dtype is not None)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's answer."""
        with self.autocast():
            answer: Tensor = functional_call(self.module, self._half, inputs) if self._half else self.module(*inputs)
        return answer

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss` to those of this turn. If it is not finite, they are NaN on every rank."""
        # Without the factor they could be finite: the gradients of L1 are signs, and those of a saturated logit are 0.
        self.scaler.scale(loss * (1 + 0 * loss.detach())).backward()
        if not self._half:
            return
        full, half = self._full.values(), self._half.values()
        new = [torch.empty_like(p) for p in full]
        torch._foreach_copy_(new, [h.grad for h in half if h.grad is not None])
        before = [p.grad for p in full if p.grad is not None]
        if before:
            torch._foreach_add_(new, before)
        for p, h, gradient in zip(full, half, new, strict=True):
            p.grad, h.grad = gradient, None

    def update(self) -> Tensor:
        """Updates the network, unless a gradient is not finite. Returns the gradients' norm before clipping.

        The gradients are averaged over the ranks first, so a NaN on one rank makes all ranks skip the update.
        """
        self.gradients.average()
        self.scaler.unscale_(self.optimizer)
        parameters = list(self.module.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._clip_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, norm)
        self.optimizer.found_inf = nonfinite(norm).float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return norm

    def load_optimizer(self, saved: dict[str, Any]) -> None:
        """Restores Adam's moments from its `state_dict`; the settings are this run's, also those of old checkpoints."""
        own = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": own})
        self.set_rate(0)  # the tensors of the rates were copied; each step sets them
        self._begin_moments()


def nonfinite(values: Tensor) -> Tensor:
    """Whether some value is infinite or NaN: bool (). Unlike `isfinite`, it takes three kernels instead of six."""
    return (values * 0).sum() != 0  # 0 * inf and 0 * NaN are NaN
