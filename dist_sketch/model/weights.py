"""Weights on disk: loading them into a network, and storing them in 8 bits, a quarter of the size."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dist_sketch.core.errors import UserError

LARGEST = 1e18  # of a weight; the squares of larger ones are beyond float32
SCALE = ".scale"  # suffix of the name of a tensor's scales, one for each slice of its first axis


def load_weights(path: Path, module: nn.Module) -> None:
    """Loads a `.safetensors` file into a network.

    Raises:
        UserError: the file is missing or damaged, belongs to another network, or has weights that no training gives.
    """
    check_weights(path, module)
    try:
        module.load_state_dict(from_8bit(load_file(path)))
    except Exception as e:  # safetensors' own error type is not public; torch raises RuntimeError
        raise _foreign(path, str(e)) from e
    # Such a network would draw black or blank pages. What was loaded is looked at: in float32 1e300 is not finite.
    for name, tensor in module.state_dict().items():
        if not (tensor.abs() < LARGEST).all():  # as NaN
            raise UserError(f"{path}: {name} has values that are not finite, or too large to compute with")
        if name.endswith("running_var") and (tensor < 0).any():
            raise UserError(f"{path}: {name} has values below 0, which no variance has")


def check_weights(path: Path, module: nn.Module) -> None:
    """Compares the names, shapes and types in a file's header with a network, which may be on the device "meta".

    Raises:
        UserError: the file is missing or damaged, or belongs to another network.
    """
    if not path.is_file():
        raise UserError(f"{path}: missing")
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            shapes = {name: tuple(tensor.get_shape()) for name, tensor in found.items()}
            types = {name: tensor.get_dtype() for name, tensor in found.items()}
    except Exception as e:  # safetensors' own error type is not public
        raise _foreign(path, str(e)) from e
    wanted = module.state_dict()
    own = {name for name in found if not name.endswith(SCALE)}
    for name in sorted(own ^ wanted.keys()):
        raise _foreign(path, f"{name} is {'missing' if name in wanted else 'unknown'}")
    for name, tensor in wanted.items():
        scale = shapes.get(name + SCALE)
        if shapes[name] != tensor.shape:
            raise _foreign(path, f"{name} has the shape {shapes[name]}, not {tuple(tensor.shape)}")
        if scale is not None and scale != (*tensor.shape[:1], *(1 for _ in tensor.shape[1:])):
            raise _foreign(path, f"{name + SCALE} has the shape {scale}")
        if scale is None and tensor.is_floating_point() and types[name] not in ("F64", "F32", "F16", "BF16"):
            raise _foreign(path, f"{name} is of type {types[name]}")


def _foreign(path: Path, why: str) -> UserError:
    return UserError(f"{path}: does not hold the weights of this network: {(why.splitlines() or ['damaged'])[0]}")


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
