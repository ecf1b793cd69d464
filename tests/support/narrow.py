"""The real networks with very few channels: all weights have their names, but a checkpoint takes only kilobytes."""

import importlib
from importlib.util import find_spec
from typing import Any

from torch import nn


def narrow() -> None:
    """From here on generators have an eighth of the configured width, and discriminators 8 channels throughout.

    `old_files/make.py` uses it with an older package, in which the module was `dist_sketch.networks`.
    """
    networks: Any = importlib.import_module(f"dist_sketch.{'model.' * bool(find_spec('dist_sketch.model'))}networks")

    class Generator(networks.Generator):
        def __init__(self, *, width: int, **more: Any):
            super().__init__(width=width // 8, **more)

    class Discriminator(networks.Discriminator):
        def __init__(self, *, channels: int, dropout: float, norm: Any, fine: float, **_: Any):
            super().__init__(channels=channels, dropout=dropout, norm=norm, fine=fine)
            self.layers = nn.Sequential(
                networks.Down((3 if fine else 2) * channels, 8, "none"),
                networks.Down(8, 8, norm),
                nn.Conv2d(8, 8, 3),
                nn.LeakyReLU(networks.SLOPE),
                nn.BatchNorm2d(8),
                nn.Dropout2d(dropout),
                nn.Conv2d(8, 1, 3),
            )

    networks.Generator, networks.Discriminator = Generator, Discriminator
