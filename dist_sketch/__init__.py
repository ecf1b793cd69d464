"""Distributed training of the network that turns a rough line drawing of a face into a pencil portrait."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["SketchGenerator", "__version__"]


def __getattr__(name: str) -> Any:
    """`dist_sketch.SketchGenerator`, imported when it is first asked for: it needs torch."""
    if name == "SketchGenerator":
        from dist_sketch.model.pretrained import SketchGenerator

        return SketchGenerator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
