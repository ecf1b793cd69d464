"""The options of `dist-sketch infer`; importing them does not import torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MOST_OUTPUT_PX = 8192


@dataclass(frozen=True, kw_only=True)
class DenoiseOverride:
    """Noise removal: what is set here replaces the run's calibrated setting."""

    gray: bool | None = None
    """Convert to gray."""
    filter: Literal["none", "median", "tv", "nlm", "bilateral"] | None = None
    """Filter against isolated noise."""
    strength: float | None = None
    """Strength of the filter."""
    shadows: bool | None = None
    """Remove shadows at the edges of the page, and what is brighter than the page."""


@dataclass(frozen=True, kw_only=True)
class InferOptions:
    """How `infer` draws and what it writes."""

    split: str = "val"
    """Split of shards, or of a folder with splits, to draw."""
    step: int | None = None
    """Checkpoint to use; default: the one that the run chose (checkpoint.choose), else the newest."""
    batch_size: int = 8
    """Images drawn at once on each rank; does not change the result."""
    part: str = ""
    """Draw only part K of N ("K/N"), beside other jobs that draw the others into the same --out; `dist-sketch merge`
    makes the whole of them."""
    workers: int | None = None
    """Processes a rank that remove noise and write files; default: the cores of the node over its ranks."""
    mode: Literal["running", "paper"] = "running"
    """running: running statistics, no dropout; paper: batch statistics and dropout, one image at a time."""
    seed: int = 0
    """Of the dropout in the paper's mode; drawn for each name."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    """Arithmetic; no: float32."""
    output_size: str = "network"
    """Size of the files: network, source (the line's own width and height), or a number of px."""
    format: Literal["png", "jpg"] = "png"
    """Format of raw/ and sketch/; jpg: RGB, named like the input, as the challenge wants it."""
    denoise: DenoiseOverride = field(default_factory=DenoiseOverride)
    fid_weights: Path | None = None
    """File of FID's Inception weights; default: wherever `dist-sketch weights` finds them."""
