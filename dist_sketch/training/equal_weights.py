"""Whether all ranks hold the same weights, as they must: each applies the same mean gradient to the same weights."""

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from dist_sketch.core.errors import SharedError
from dist_sketch.core.ranks import Ranks


def fingerprint(module: nn.Module, ranks: Ranks) -> str:
    """A hash of the bits of all parameters, 16 hex digits; all ranks call it.

    The device reduces each parameter to 64 bits, so that only these are sent to the host.
    """
    bits = torch.stack([torch.hash_tensor(p.detach()).view(torch.int64) for p in module.parameters()])
    return hashlib.sha256(ranks.to_host(bits).numpy().tobytes()).hexdigest()[:16]


def check(modules: Mapping[str, nn.Module], ranks: Ranks, step: int, equal_at: int) -> None:
    """Compares the networks over the ranks, which costs one exchange of some bytes.

    Args:
        step: number of steps that are done.
        equal_at: the last step at which the weights were equal.

    Raises:
        UserError: on all ranks alike, a network is not the same on all of them.
    """
    if ranks.world_size == 1:
        return
    each = ranks.gather({name: fingerprint(module, ranks) for name, module in modules.items()})
    for name in modules:
        found: dict[str, list[int]] = {}
        for rank, own in enumerate(each):
            found.setdefault(own[name], []).append(rank)
        if len(found) > 1:
            told = "; ".join(f"{digest} on rank {', '.join(map(str, holders))}" for digest, holders in found.items())
            raise SharedError(
                f"step {step}: the ranks' weights differ: {name} is {told}; they were last equal at step {equal_at}. "
                "Some rank computes or receives wrong numbers: look for faulty memory, a faulty device or network, or "
                "processors of different kinds. The same command goes on from the newest checkpoint; "
                "--train.check-interval-steps N checks more often"
            )
