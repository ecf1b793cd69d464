"""Weights in 8 bits: a fourth of the space, for a generator that is to be given away."""

import torch
from torch import Tensor

SCALE = ".scale"  # joined to a tensor's name: what its integers are multiples of, one for each slice of its first axis


def rounded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rounds all but vectors and integers to 255 steps, from minus to plus the largest of a slice of the first axis."""
    result = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            largest = tensor.abs().amax(tuple(range(1, tensor.ndim)), keepdim=True)
            scale = largest.clamp(min=torch.finfo(torch.float32).tiny) / 127
            result |= {name: (tensor / scale).round().to(torch.int8), name + SCALE: scale}
    return result


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `rounded` was given, rounded; others as they are."""
    own = {n: t for n, t in tensors.items() if not n.endswith(SCALE)}
    return {n: t * tensors[n + SCALE] if n + SCALE in tensors else t for n, t in own.items()}
