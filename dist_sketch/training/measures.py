"""What a step measures: the names, how they are collected on the device, and how the host reads them."""

import math
from collections import defaultdict
from typing import NamedTuple

from torch import Tensor

# What a step measures: means over this rank's pairs, gradient norms, counts and flags.
MEANS = ("loss/d_real", "loss/d_fake", "loss/g", "loss/g_bce", "loss/g_l1", "loss/g_ssim", "d/real", "d/fake")
NORMS = ("norm/d", "norm/g")  # gradient norms; equal on all ranks
COUNTS = ("pairs", "nonfinite", "bad", "stop")
NAMES = (*MEANS, *NORMS, *COUNTS)


class Measured(NamedTuple):
    """What a step measured; still on the device."""

    reduced: Tensor  # the values of `NAMES`, summed over the ranks: float64 (len(NAMES),)
    own_nonfinite: Tensor  # whether a loss on this rank was not finite: bool ()


class Measures:
    """What the turns of a step find out, by name."""

    def __init__(self) -> None:
        self.pairs: dict[str, list[Tensor]] = defaultdict(list)  # values of each pair, one tensor a micro-batch
        self.norms: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Takes one value for each pair of a micro-batch, (B,)."""
        self.pairs[name].append(values.detach())


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
