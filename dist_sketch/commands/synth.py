"""`dist-sketch synth`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class SynthCommand:
    """Draw procedural portraits: DIR/{train,val}_{line,sketch}/N.jpg. The same seed always gives the same files."""

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]]
    """Folder for the pairs."""
    count: int = 64
    """Training pairs."""
    val: int = 16
    """Validation pairs, in addition."""
    size: int = 256
    """Width and height, px."""
    seed: int = 0
    """Another seed draws other people."""
    workers: int | None = None
    """Processes; default: one for each core."""

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch.data.synthetic import dataset as synth

        synth.write(self.folder, count=self.count, val=self.val, size=self.size, seed=self.seed, workers=self.workers)
        print(f"{self.folder}: {self.count} training and {self.val} validation pairs at {self.size} px")
        return 0
