"""Weights on disk: loading them into a network, and storing them in 8 bits, a quarter of the size."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dist_sketch.core.errors import UserError

SCALE = ".scale"  # suffix of the name of a tensor's scales, one for each slice of its first axis


def load_weights(path: Path, module: nn.Module) -> None:
    """Loads a `.safetensors` file into a network.

    Raises:
        UserError: the file is missing or damaged, or belongs to another network.
    """
    try:
        module.load_state_dict(from_8bit(load_file(path)))
    except FileNotFoundError as e:
        raise UserError(f"{path}: missing") from e
    except Exception as e:  # safetensors' own error type is not public; torch raises RuntimeError
        raise UserError(f"{path}: does not hold the weights of this network: {str(e).splitlines()[0]}") from e


def to_8bit(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rounds tensors (but not vectors and integers) to 255 levels, scaled to the largest value of each slice."""
    result = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            largest = tensor.abs().amax(tuple(range(1, tensor.ndim)), keepdim=True)
            scale = largest.clamp(min=torch.finfo(torch.float32).tiny) / 127
            result |= {name: (tensor / scale).round().to(torch.int8), name + SCALE: scale}
    return result


def from_8bit(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_8bit`, but for the rounding; tensors without scales are returned as they are."""
    own = {n: t for n, t in tensors.items() if not n.endswith(SCALE)}
    return {n: t * tensors[n + SCALE] if n + SCALE in tensors else t for n, t in own.items()}
