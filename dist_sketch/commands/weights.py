"""`dist-sketch weights`."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class WeightsCommand:
    """Say where FID's Inception weights are; fetch them if they are nowhere; check them."""

    fid_weights: Path | None = None
    """A file of them."""

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch.metrics import inception

        weights = inception.fetch(self.fid_weights)
        print(f"{weights.path}\nsource: {weights.source}\nsha256: {weights.sha256}")
        return 0
