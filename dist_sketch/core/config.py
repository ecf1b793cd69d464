"""The configuration of a training run: one frozen dataclass tree, resolved as defaults < TOML < command line.

Each field's docstring is its `--help` text; the words in capitals are the paper's names (section 4.2).
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from dist_sketch.core import toml_dataclass
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import find_file, flat, read_toml
from dist_sketch.core.places import Place

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the pairs come from and in which order."""

    shards: Place | None = None
    """Folder of packed shards (`dist-sketch pack`), or their address: s3://BUCKET/FOLDER, gs://BUCKET/FOLDER,
    https://HOST/FOLDER, hf://datasets/USER/NAME."""
    cache_mb: float = 4000.0
    """Keep what is fetched from an address in files on the node's disk, shared by its ranks, up to this size: in
    DIST_SKETCH_CACHE, or a folder in TMPDIR; 0: never."""
    batch_size: int = 8
    """BATCHSIZE: pairs per step, over ALL ranks together; must be divisible by the number of ranks."""
    where: str = ""
    """Train, and validate, only with the pairs whose labels (`pack --labels`) make this true, as in "style == 1 and not
    smile" or "source in ('cufs', 'fs2k')"; label('hair color') is a label of two words. A comparison with a label that
    a pair lacks is false. Empty: all pairs."""
    weights: str = ""
    """How often a pair stands in an epoch, from its labels, as in "3 if source == 'cufs' else 1"; a fraction is rounded
    up in so many of the epochs. An epoch has as many pairs as the sum of all weights. Empty: each pair once."""
    shuffle: bool = True
    """Shuffle the pairs anew in each epoch; the order depends only on (seed, epoch). The paper did not shuffle."""
    channels: Literal[1, 3] = 3
    """3: RGB, as in the paper; 1: gray lines to gray sketches."""
    flip: bool = False
    """Augmentation: mirror half of the pairs."""
    shift: bool = False
    """Augmentation: move both images of a pair by up to 1/16 of the side; mirroring fills the gap at the edge."""
    freehand: int = 0
    """Augmentation: number of freehand versions of each line (wobbling, broken, thick or pale strokes, gray paper);
    half of the time a pair shows one of them, else the clean line; 0: none."""
    workers: int = 1
    """Loader processes per rank; 0: load in the training process."""
    memory_mb: float = 2000.0
    """Keep all decoded pairs in memory, shared by a machine's ranks and workers, if they fit into this; 0: never."""
    device_memory_mb: float = 1000.0
    """GPUs: keep the decoded training split in each GPU's own memory if it fits into this; 0: never."""
    stall_timeout_s: float = 600.0
    """Longest wait for a batch from the loader's workers, or for a pair on its way into a GPU's memory, before the run
    stops; 0: wait for ever."""
    skip_bad: int = 0
    """Number of unreadable samples that may be left out before the run stops."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and in which arithmetic."""

    epochs: int = 50
    """EPOCHS: passes over the training split. May be raised when a run is continued."""
    precision: Literal["auto", "no", "bf16", "fp16", "fp64"] = "auto"
    """no: float32, never TF32; auto: bf16 where the device computes it fast, else float32; fp64: to compare runs
    exactly."""
    seed: int = 0
    """Seeds weights, order, augmentation and dropout."""
    nonfinite_limit: int = 20
    """Stop after so many steps in a row with a loss or gradient that is not finite; each such step is skipped."""
    sync_interval_steps: int = 0
    """Steps between two readings of the losses, and decisions, by the host; 0: 1 on CPUs, 16 on GPUs."""
    accumulate: int = 1
    """Split each rank's share of a batch into so many micro-batches, to save memory. BatchNorm's statistics are then
    those of a micro-batch, so with norm = 'batch' this may not change when a run is continued."""
    sync_batchnorm: bool = False
    """Compute BatchNorm's statistics over all ranks' pairs instead of each rank's own; GPUs only."""
    rank_timeout_s: float = 1800.0
    """How long a rank waits for the others before it gives up and writes the reason into status.json. Rank 0 alone
    computes FID and KID, hashes checkpoints and chooses the noise removal: the others wait as long as that takes."""
    hang_dump_s: float = 120.0
    """A rank that makes no progress for so long writes what it waits for and its Python stacks into its log, and rank 0
    names the ranks that have not come; 0: never."""
    check_interval_steps: int = 0
    """Steps between two checks that all ranks hold equal weights; 0: at each checkpoint; -1: never."""
    validate_interval_epochs: int = 5
    """Epochs between two scorings of the validation split; 0: never."""
    validate_limit: int = 256
    """Score the first so many validation pairs; 0: all."""
    validate_fid: bool = True
    """Also score FID-64 where this machine has FID's weights; on CPUs validation then takes a third longer. At the end
    of the run, reject a noise removal that raises KID."""
    sample_interval_epochs: int = 5
    """Epochs between two pictures of the same few validation pairs; 0: never."""
    sample_count: int = 4
    """Validation pairs in that picture."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam for both networks."""

    lr_g: float = 2e-3
    """LEARNING_RATE of the generator."""
    inner: float = 1.0
    """Share of lr_g with which the U-Net inside an enhancer learns; 0: it stays as it began. One that can draw already
    should learn slowly: a new discriminator's first judgements would undo what it knows."""
    lr_d: float = 1e-3
    """LEARNING_RATE of the discriminator."""
    beta1: float = 0.5
    """Adam's decay of the mean gradient."""
    beta2: float = 0.999
    """Adam's decay of the mean squared gradient."""
    clip_norm: float = 0.0
    """Largest gradient norm of a network; 0: no clipping (the paper's)."""
    decay: float = 0.0
    """Fraction of the run, at its end, over which the learning rates fall linearly to 0; 0: constant (the paper's)."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """loss_G = scale * (BCE + LAMBDA * L1 + lambda_ssim * (1 - SSIM))."""

    lambda_l1: float = 100.0
    """LAMBDA: weight of L1 against BCE in the generator's loss."""
    scale: float = 0.1
    """Factor of the whole generator loss."""
    lambda_ssim: float = 0.0
    """Weight of 1 - SSIM beside L1 in the generator's loss (Zhao et al. 2017); 0: none (the paper's)."""
    d_backward: Literal["separate", "joint"] = "separate"
    """separate: one backward per term, which needs less memory (the paper's way); joint: one for both. Unless norm is
    'batch', joint also judges real and drawn sketches in one pass, which is faster on GPUs."""


@dataclass(frozen=True, kw_only=True)
class ConditionalConfig:
    """Conditional training: when a network is locked (section 3.5.1 of the paper)."""

    mode: Literal["on", "off", "paper"] = "on"
    """on: timer and judgement, locks can open; off: both always train; paper: the paper's rule as it ran."""
    timer: int = 2
    """TIMER: the timed network trains once every TIMER units; 1: always."""
    timer_net: Literal["d", "g"] = "d"
    """The network that trains only when the timer allows it."""
    timer_unit: Literal["epochs", "steps"] = "epochs"
    """What the timer counts."""
    loss_threshold: float = 0.02
    """LOSS_THRESHOLD: a discriminator loss below it is 'very small' and may lock D."""
    g_threshold: float = 2.0
    """G is locked when D's loss rises above it: G is then much stronger (2 ln 2 = 1.39: D only guesses)."""
    growth: float = 0.02
    """G's loss 'grows' when its short mean exceeds its long mean by this fraction."""
    hysteresis: float = 1.5
    """A lock opens only when the loss has crossed back over its threshold by this factor."""
    short_steps: int = 20
    """Time constant of the short running means of both losses."""
    long_steps: int = 200
    """Time constant of the long running mean of G's loss."""
    longest_lock_steps: int = 1000
    """A lock closed because of the losses opens after so many steps at the latest; 0: no limit."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """The network that draws."""

    network: Literal["unet", "baseline"] = "unet"
    """unet: the paper's generator; baseline: its 'normal 5-layer convolution network'."""
    dropout: float = 0.5
    """Rate of the channel dropout in the generator's up blocks and in the discriminator."""
    width: int = 64
    """Channels of the first block; the others grow with it."""
    upsample: Literal["transposed", "resize"] = "transposed"
    """How the up blocks double the size. transposed: transposed convolution (the paper's); resize: enlarge, then
    convolve, which avoids checkerboard patterns (Odena et al. 2016) and costs more."""
    detail: int = 0
    """Channels of an extra last block at full size that also gets the line image (Ronneberger et al. 2015); 0: none."""
    noise: int = 0
    """Noise channels that this block also gets, so that it can draw the grain of paper (Karras et al. 2019)."""
    enhance: int = 0
    """Channels of an enhancer: the U-Net then draws at half the size, and the enhancer adds what full size shows (Wang
    et al. 2018, pix2pixHD). It needs detail, and sizes that are multiples of 128 px. 0: none."""
    ema: float = 0.0
    """Decay of the moving average of the generator's weights; the averaged generator then draws. 0: none."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """The network that judges."""

    fine: float = 0.0
    """Gain of an extra input plane that shows the sketch's finest detail, such as paper grain (Denton et al. 2015); 0:
    none."""
    scales: int = 1
    """Judges, each of which sees the pair at half the size of the one before (Wang et al. 2018)."""
    width: int = 64
    """Channels of the first judge's first block; each coarser judge has twice as many, for the same work."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run."""

    interval_steps: int = 500
    """Steps between two checkpoints; 0: one at the end of each epoch."""
    keep: int = 3
    """Newest checkpoints that are kept."""
    choose: Literal["last", "kid", "scoot"] = "last"
    """Which weights draw. last: the newest; kid, scoot: those with the lowest KID, or the highest SCOOT, on the
    validation pairs so far, which are kept in addition. KID needs the weights of FID's network."""


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """Weights & Biases. WANDB_MODE=disabled also switches it off."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online if the user is logged in and the server answers, else offline."""
    project: str = "dist_sketch"
    """W&B project."""
    group: str = ""
    """W&B group: the experiment's name."""
    name: str = ""
    """W&B name of the run; empty: its folder's name."""
    timeout_s: float = 10.0
    """Longest time that W&B may take at the start, and again at the end."""
    log_interval_steps: int = 10
    """Steps between two lines of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides what a training run computes."""

    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    conditional: ConditionalConfig = field(default_factory=ConditionalConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    norm: Literal["batch", "instance", "group", "none"] = "batch"
    """Normalisation in both networks."""
    init_from: Path | None = None
    """A new run begins with the generator that draws in this run or export (or one that comes with dist_sketch:
    portrait-128), and with a run's discriminator. The networks' settings must be the same, but an enhancer may be new;
    the size need not."""


# Removed settings with their old defaults, so that old runs still load.
REMOVED = {"optim.decay_start_step": 0, "optim.decay_steps": 0, "data.jitter": False}

STRONGEST = 1000.0  # noise removal; from 50 on hardly anything changes


def items(config: Any) -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for each leaf of a dataclass tree."""
    return flat(dataclasses.asdict(config))


def to_dict(config: Any) -> dict[str, Any]:
    """The tree as plain values for JSON; paths become strings."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return result


def from_dict(cls: type[T], values: Any, where: str, prefix: str = "") -> T:
    """Builds `cls` from a nested dict as `toml_dataclass.from_dict` does; removed settings of old runs are ignored."""
    return toml_dataclass.from_dict(cls, values, where, prefix, REMOVED)


def load(name: str | None) -> Config:
    """The defaults, overridden by the preset or TOML file `name`; not validated yet."""
    if name is None:
        return Config()
    path = find_file("launch", name)
    return from_dict(Config, read_toml(path), str(path))


Filter = Literal["none", "median", "tv", "nlm", "bilateral"]


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig:
    """Noise removal after drawing. Each part can be switched on and off by itself."""

    gray: bool = True
    """Remove coloured noise: every channel becomes the luma (ITU-R 601)."""
    filter: Filter = "median"
    """median: isolated specks; tv: total variation; nlm: non-local means; bilateral: mean of similar neighbours."""
    strength: float = 1.0
    """How much the filter removes; 0: nothing. median: specks of up to 6 * strength pixels (at 128 px);
    tv: weight 0.05 * strength; nlm: h 0.06 * strength; bilateral: sigma of tone 0.1 * strength (black 0, white 1)."""
    shadows: bool = True
    """Even out the page: remove smooth shadows at its edges and spots that are brighter than paper; ink is kept."""

    def check(self) -> "DenoiseConfig":
        """Returns itself, or raises UserError where a value is out of its range."""
        if self.filter not in get_args(Filter):
            raise UserError(f"denoise.filter = {self.filter!r}: must be one of {', '.join(get_args(Filter))}")
        if not 0 <= self.strength <= STRONGEST:
            raise UserError(f"denoise.strength = {self.strength!r}: must be from 0 (nothing) to {STRONGEST:g}")
        return self
