"""The options of `dist-sketch bench`; imports nothing heavy, because `--help` reads it."""

from dataclasses import dataclass, replace
from pathlib import Path

from dist_sketch.core.config import load


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure, and how long."""

    size: int = 256
    """Width and height of the networks' images, px; a multiple of 64."""
    batch_size: int = 8
    """Pairs in each training step."""
    repeats: int = 5
    """Rounds of each comparison; the median counts. In a round each variant runs once, including the baseline."""
    budget_s: float = 150.0
    """After this many seconds a comparison starts no new round, so that slow baselines get fewer than --repeats."""
    steps: int = 0
    """Training steps in one timing; 0: 1 on CPUs, 20 on GPUs."""
    preset: str | None = None
    """step: measure the networks and losses of this preset (a name, or a TOML file) instead of the paper's; the batch
    size is still that of --batch-size."""
    table: bool = False
    """step: also measure over batch sizes; always done on GPUs."""
    batch_sizes: tuple[int, ...] = ()
    """step: batch sizes of that table; default: 2, 4, 8, ... up to what fits into a GPU's memory, on CPUs up to twice
    --batch-size."""
    loss_steps: int = 100
    """step: steps over which the losses in float32 and in the fast precision are compared."""
    source_size: int = 1024
    """loader: width and height of the baseline's JPEGs, px."""
    pairs: int = 24
    """loader, infer: pairs that are drawn for the measurement."""
    workers: int = 0
    """loader: largest number of worker processes to try; 0: one for each core, up to 8."""
    index: int = 1_000_000
    """loader, start: pairs of a large set, of which the bench makes the index and only a few pictures."""
    images: int = 1000
    """metrics: size of the image set; infer: images to draw, at most 64."""
    dims: int = 2048
    """metrics: features of the Fréchet distance that is measured with fewer images than features."""
    fid_weights: Path | None = None
    """metrics: file of FID's Inception weights; default: where `dist-sketch weights` finds them."""
    quick: bool = False
    """Use small sizes: shows that everything works, but the figures mean nothing."""

    def resolved(self) -> "BenchOptions":
        """Applies the sizes that `quick` stands for."""
        if not self.quick:
            return self
        size = 128 if self.preset and load(self.preset).generator.enhance else 64  # the least that its networks take
        small = {"size": size, "batch_size": 4, "repeats": 2, "budget_s": 10.0, "steps": 1, "loss_steps": 4}
        small |= {"source_size": 256, "pairs": 8, "workers": 1, "index": 2000, "images": 8, "dims": 192}
        return replace(self, **{k: min(getattr(self, k) or v, v) for k, v in small.items()})  # type: ignore[arg-type]
