"""Names the place where a step first became infinite or NaN: the weight, the layer's output, or the gradient there."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class FirstBad:
    """The first value that was not finite inside `watched`."""

    def __init__(self) -> None:
        self.place = ""
        """A few words; empty as long as all values are finite."""

    def look(self, values: Tensor, place: str) -> None:
        """Takes values; asks the device for an answer, so it is only for a step that is repeated for this purpose."""
        if not self.place and not values.isfinite().all():
            self.place = place


@contextmanager
def watched(networks: Mapping[str, nn.Module]) -> Iterator[FirstBad]:
    """Inside the block, looks at the layers of the networks in the order in which they compute, forward and backward.

    A layer is a module without modules in it. What is computed between two layers shows in the output of the later one.
    """
    first = FirstBad()
    for net, module in networks.items():
        for name, weight in module.named_parameters():
            first.look(weight, f"the weight {name} of the {net}")
    hooks = [
        layer.register_forward_hook(_looks_at_output(first, f"{name} ({type(layer).__name__}) of the {net}"))
        for net, module in networks.items()
        for name, layer in module.named_modules()
        if not next(layer.children(), None)
    ]
    try:
        yield first
    finally:
        for hook in hooks:
            hook.remove()


def _looks_at_output(first: FirstBad, layer: str) -> Callable[[nn.Module, Any, Any], None]:
    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            first.look(output, f"the output of {layer}")
            if output.requires_grad:
                output.register_hook(lambda gradient: first.look(gradient, f"the gradient at the output of {layer}"))

    return look
