"""The mean of a network's gradients over the ranks, by one all-reduce of one buffer."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dist_sketch.core.ranks import Ranks

ALIGNMENT = 16  # bytes; the fused optimizer reads aligned gradients faster


class FlatGradients:
    """Averages the gradients of one network over the ranks.

    All gradients are copied into one buffer, whose address never changes, so that a CUDA graph can hold the reduction.
    The layout of the buffer decides the order of summation. It depends on the parameters alone, so a resumed run adds
    in the same order as one that was never stopped.

    One process alone has nothing to average: no buffer is made then, and gradients stay as they are.

    Args:
        parameters: of one network, all of one type and on one device; all of them get a gradient in each backward.
        ranks: the processes whose gradients are averaged. All give the same parameters in the same order.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks):
        self._parameters, self._ranks = list(parameters), ranks
        self.flat: Tensor | None = None  # all gradients, one after another
        if ranks.world_size == 1:
            return
        first = self._parameters[0]
        assert all((p.dtype, p.device) == (first.dtype, first.device) for p in self._parameters)
        unit = ALIGNMENT // first.element_size()
        room = [-(-p.numel() // unit) * unit for p in self._parameters]
        self.flat = torch.zeros(sum(room), dtype=first.dtype, device=first.device)
        # Strides as its parameter has them: the optimizer is fast only where both agree (channels_last).
        self._views = [
            part[: p.numel()].as_strided(p.shape, torch.empty_like(p, device="meta").stride())
            for p, part in zip(self._parameters, self.flat.split(room), strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes that `average` sends; 0 for one process."""
        return 0 if self.flat is None else self.flat.nbytes

    @torch.no_grad()
    def average(self) -> None:
        """Replaces each parameter's `grad` by the mean over the ranks, which is bit-equal on all of them.

        To be called after a backward, by all ranks in the same order. NaN on one rank becomes NaN on all. The gradients
        are then parts of the buffer: the next `average` overwrites them.
        """
        if self.flat is None:
            return
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        # A gap cannot be filled with zeros: Adam would move a parameter here that it leaves alone in one process.
        assert len(gradients) == len(self._views), "average() needs a gradient of every parameter"
        torch._foreach_copy_(self._views, gradients)
        self._ranks.sum(self.flat)
        self.flat.div_(self._ranks.world_size)
        for parameter, view in zip(self._parameters, self._views, strict=True):
            parameter.grad = view
