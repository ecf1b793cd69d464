"""The options of `dist-sketch infer`; importing them does not import torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dist_sketch.data.manifest import Fit

MOST_OUTPUT_PX = 8192
MOST_SOURCE_PX = 65_500  # of a side, if drawings get the size of their lines; a JPEG cannot have more


@dataclass(frozen=True, kw_only=True)
class DenoiseOverride:
    """Noise removal: a value given here replaces the one that the run has chosen."""

    gray: bool | None = None
    """Convert to gray."""
    filter: Literal["none", "median", "tv", "nlm", "bilateral"] | None = None
    """Filter against isolated noise."""
    strength: float | None = None
    """Strength of the filter."""
    shadows: bool | None = None
    """Remove shadows at the edges of the page, and spots that are brighter than the page."""


@dataclass(frozen=True, kw_only=True)
class InferOptions:
    """How `infer` draws and what it writes."""

    split: str = "val"
    """Split of shards, or of a folder with splits, to draw."""
    where: str = ""
    """Of shards draw only the pairs whose labels make this true, as in "style == 1 and not smile" (see `train
    --data.where`)."""
    fit: Fit | None = None
    """How pages that are not square become the network's square. squash: the aspect ratio is not kept, as in the paper;
    pad: with margins in the tone of the page's border, which are cut off the drawing again; crop: the largest square in
    the middle. Default: as the shards were packed that the generator has learnt from."""
    invert: bool = False
    """The lines are light on dark: draw from their negatives."""
    step: int | None = None
    """Checkpoint to use; default: the one that the run chose (checkpoint.choose), else the newest."""
    batch_size: int = 8
    """Images drawn at once on each rank; does not change the result."""
    part: str = ""
    """Draw only part K of N (as in 2/8); other jobs draw the other parts into the same --out, and `dist-sketch merge`
    joins them."""
    rank_timeout_s: float = 1800.0
    """How long a rank waits for the others before it gives up. A rank that has drawn its share waits until the slowest
    has drawn its own, and while rank 0 computes the scores."""
    workers: int | None = None
    """Processes per rank that remove noise and write files; default: the node's cores divided by its ranks, or none for
    few pictures."""
    mode: Literal["running", "paper"] = "running"
    """running: running statistics, no dropout; paper: batch statistics and dropout, one image at a time."""
    seed: int = 0
    """Seed of the dropout in the paper's mode; together with an image's name it decides what is dropped."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Arithmetic; no: float32."""
    output_size: str = "network"
    """Size of the files: network, source (the line's own width and height), or a number of px."""
    format: Literal["png", "jpg"] = "png"
    """Format of raw/ and sketch/; jpg: RGB, named like the input, as the CGI-PSG challenge asks for."""
    denoise: DenoiseOverride = field(default_factory=DenoiseOverride)
    skip_bad: bool = False
    """Leave inputs out that cannot be read: they are named, and the exit code is 0 if others are drawn."""
    scores: bool = True
    """Score the drawings where the input has sketches; `dist-sketch evaluate` can do it later."""
    fid_weights: Path | None = None
    """File of FID's Inception weights; default: the file that `dist-sketch weights` finds."""
