"""The configuration of a training run: one frozen dataclass tree, resolved as defaults < TOML < command line.

Each field's docstring is its `--help` text; the words in capitals are the paper's names (section 4.2).
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dist_sketch.core.errors import SharedError, UserError
from dist_sketch.core.fileio import find_file, read_toml

T = typing.TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the pairs come from and in which order."""

    shards: Path | None = None
    """Folder of packed shards (`dist-sketch pack`)."""
    batch_size: int = 8
    """BATCHSIZE: pairs a step over ALL ranks together; must divide by the number of ranks."""
    shuffle: bool = True
    """New order of the pairs in each epoch, a pure function of (seed, epoch). The paper kept one order."""
    channels: Literal[1, 3] = 3
    """3: RGB, as the paper; 1: gray lines to gray sketches."""
    flip: bool = False
    """Augmentation: mirror half of the pairs."""
    shift: bool = False
    """Augmentation: move by up to a sixteenth of the side each way, both halves alike; what is missing is mirrored."""
    workers: int = 1
    """Loader processes a rank; 0 loads in the training process."""
    memory_mb: float = 2000.0
    """A rank keeps the decoded pairs in memory, shared by its workers, if all of them fit into this; 0: never."""
    stall_timeout_s: float = 600.0
    """Longest wait for a batch from the loader's workers before the run stops; 0: for ever."""
    skip_bad: int = 0
    """How many samples that fail their hash may be left out before the run stops."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and in which arithmetic."""

    epochs: int = 50
    """EPOCHS: passes over the training split. The only setting that a resumed run may raise."""
    precision: Literal["auto", "no", "bf16", "fp16", "fp64"] = "auto"
    """auto: bf16 where the device computes it fast, else float32 (no). fp64 is for comparing runs."""
    seed: int = 0
    """Seeds weights, order, augmentation and dropout."""
    nonfinite_limit: int = 20
    """Steps in a row with a loss or gradient that is not finite (each is skipped) before the run stops."""
    sync_interval_steps: int = 0
    """Steps between two readings of the reduced losses by the host; 0: 1 on CPUs, 16 on GPUs."""
    accumulate: int = 1
    """Parts in which each rank works through its share of a batch: less memory for the same step (but BatchNorm's
    statistics are then a part's)."""
    sync_batchnorm: bool = False
    """BatchNorm's statistics over all ranks' pairs instead of each rank's own; GPUs only."""
    rank_timeout_s: float = 1800.0
    """How long a rank waits for the others before it gives up."""
    validate_interval_epochs: int = 5
    """Epochs between two scorings of the validation split; 0: never."""
    validate_limit: int = 256
    """Validation pairs scored each time (the first ones); 0: all."""
    validate_fid: bool = True
    """FID-64 of these pairs, too, where this machine has FID's weights; on CPUs a third more of validation's time. At
    the end of the run, leave out a noise removal that raises KID."""
    sample_interval_epochs: int = 5
    """Epochs between two pictures of the same few validation pairs; 0: never."""
    sample_count: int = 4
    """Validation pairs in that picture."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam for both networks."""

    lr_g: float = 2e-3
    """LEARNING_RATE of the generator."""
    lr_d: float = 1e-3
    """LEARNING_RATE of the discriminator."""
    beta1: float = 0.5
    """Adam's decay of the mean gradient."""
    beta2: float = 0.999
    """Adam's decay of the mean squared gradient."""
    clip_norm: float = 0.0
    """Largest gradient norm of a network; 0: no clipping (the paper's)."""
    decay: float = 0.0
    """Share of the run, its end, in which the learning rates fall linearly to 0; 0: constant (the paper's)."""


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
    """separate: the real term's graph is freed before the fake term's is built (the paper's way)."""


@dataclass(frozen=True, kw_only=True)
class ConditionalConfig:
    """Conditional training: when a network is locked (section 3.5.1 of the paper)."""

    mode: Literal["on", "off", "paper"] = "on"
    """on: timer and judgement, locks can open; off: both always train; paper: the paper's rule as it ran."""
    timer: int = 2
    """TIMER: the timed network trains once every TIMER units; 1: always."""
    timer_net: Literal["d", "g"] = "d"
    """The network that the timer holds back."""
    timer_unit: Literal["epochs", "steps"] = "epochs"
    """What the timer counts."""
    loss_threshold: float = 0.02
    """LOSS_THRESHOLD: a discriminator loss below it is 'very small' and may lock D."""
    g_threshold: float = 2.0
    """A discriminator loss above it means that G is much the stronger and locks G (2 ln 2 = 1.39 is a draw)."""
    growth: float = 0.02
    """G's loss 'grows' when its short mean exceeds its long mean by this fraction."""
    hysteresis: float = 1.5
    """A lock opens only when the loss is back by this factor beyond the threshold that closed it."""
    short_steps: int = 20
    """Time constant of the short running means of both losses."""
    long_steps: int = 200
    """Time constant of the long running mean of G's loss."""
    longest_lock_steps: int = 1000
    """A judged lock opens after so many steps whatever the losses say; 0: no limit."""


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
    """How the up blocks double: transposed convolution (the paper's); resize: enlarge, then a convolution: no
    checkerboard (Odena et al. 2016), more arithmetic."""
    detail: int = 0
    """Channels of a last block at full size, which sees the line itself (Ronneberger et al. 2015); 0: none."""
    noise: int = 0
    """Channels of noise that this block sees, too, for the grain of the paper (Karras et al. 2019)."""
    ema: float = 0.0
    """Decay of an averaged copy of the generator, which is then the one that draws; 0: none."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """The network that judges."""

    fine: float = 0.0
    """Gain of a further plane that it sees: the sketch's finest band, with the paper's grain (Denton et al. 2015); 0:
    none."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run."""

    interval_steps: int = 500
    """Steps between two checkpoints; 0: only at the end of each epoch's validation and of the run."""
    keep: int = 3
    """Newest checkpoints that are kept."""
    choose: Literal["last", "kid"] = "last"
    """The weights that draw: the last, or those whose drawings of the validation pairs had the lowest KID so far
    (which is then scored at each validation; they are kept besides)."""


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """Weights & Biases. WANDB_MODE=disabled switches it off, too."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online for a user who is logged in, else offline, as where the server does not answer."""
    project: str = "dist_sketch"
    """W&B project."""
    group: str = ""
    """W&B group: the experiment's name."""
    name: str = ""
    """W&B name of the run; empty: its folder's name."""
    timeout_s: float = 10.0
    """Most that W&B may cost at start-up, and again at the end."""
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


# Settings that are gone, at the value at which they said nothing: runs of before are still read.
GONE = {"optim.decay_start_step": 0, "optim.decay_steps": 0, "data.jitter": False}


# May differ between the legs of one run: where things lie, how long it goes on, what it tolerates and what it tells.
FREE = (
    *("data.shards", "data.workers", "data.memory_mb", "data.stall_timeout_s", "data.skip_bad"),
    *("train.epochs", "train.accumulate", "train.nonfinite_limit", "train.rank_timeout_s"),
    *("checkpoint.interval_steps", "checkpoint.keep", "track."),
)


# (keys, what they must be, holds); infinity is refused for all: JSON cannot hold it
_RULES: tuple[tuple[str, str, typing.Callable[[Any], bool]], ...] = (
    (
        "data.batch_size train.epochs train.nonfinite_limit train.accumulate conditional.timer conditional.hysteresis "
        "conditional.short_steps conditional.long_steps checkpoint.keep track.log_interval_steps",
        "at least 1",
        lambda v: v >= 1,
    ),
    (
        "data.workers data.memory_mb data.skip_bad data.stall_timeout_s train.sync_interval_steps "
        "train.validate_interval_epochs train.validate_limit train.sample_interval_epochs optim.clip_norm "
        "loss.lambda_l1 loss.lambda_ssim generator.detail generator.noise discriminator.fine "
        "conditional.loss_threshold conditional.growth "
        "conditional.longest_lock_steps checkpoint.interval_steps",
        "0 or more",
        lambda v: v >= 0,
    ),
    (
        "optim.lr_g optim.lr_d loss.scale conditional.g_threshold track.timeout_s train.rank_timeout_s",
        "above 0",
        lambda v: v > 0,
    ),
    ("optim.beta1 optim.beta2 generator.dropout generator.ema", "in [0, 1)", lambda v: 0 <= v < 1),
    ("generator.width", "a multiple of 8 above 0", lambda v: v > 0 and v % 8 == 0),
    ("optim.decay", "from 0 to 1", lambda v: 0 <= v <= 1),
    ("train.seed", "from 0 to 2^63 - 1", lambda v: 0 <= v < 2**63),
    ("train.sample_count", "from 1 to 64", lambda v: 1 <= v <= 64),
)


def validate(config: Config) -> Config:
    """Returns `config` as it is.

    Raises:
        UserError: a value is out of its range, or two values contradict each other.
    """
    values = dict(items(config))
    for keys, allowed, holds in _RULES:
        for key in keys.split():
            if not holds(values[key]) or values[key] == float("inf"):
                raise SharedError(f"{key} = {values[key]!r}: must be {allowed}, and finite")
    if config.checkpoint.choose == "kid" and not (config.train.validate_interval_epochs and config.train.validate_fid):
        raise SharedError("checkpoint.choose = 'kid': needs train.validate_interval_epochs above 0 and validate_fid")
    c = config.conditional
    if c.mode == "on" and c.g_threshold <= c.loss_threshold * c.hysteresis:
        raise SharedError(
            f"conditional.g_threshold = {c.g_threshold}: must be above loss_threshold * hysteresis = "
            f"{c.loss_threshold * c.hysteresis:g}, or both networks would be locked at once"
        )
    g, plain = config.generator, GeneratorConfig()
    own = [n for n in ("width", "upsample", "detail", "noise") if getattr(g, n) != getattr(plain, n)]
    if g.network == "baseline" and own:
        raise SharedError(f"generator.network = 'baseline': has no {' and no '.join(own)}; leave that out")
    if g.noise and not g.detail:
        raise SharedError(f"generator.noise = {g.noise}: is seen by the last block; set generator.detail, too")
    if config.train.sync_batchnorm and config.norm != "batch":
        raise SharedError(f"train.sync_batchnorm = true: norm = {config.norm!r} has no batch statistics")
    if c.mode == "paper" and (c.timer_net, c.timer_unit) != ("d", "epochs"):
        raise SharedError("conditional.mode = 'paper': the paper's timer holds D and counts epochs; use mode = 'on'")
    return config


def items(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for each leaf of a dataclass tree."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from items(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value


def to_dict(config: Any) -> dict[str, Any]:
    """The tree as JSON can hold it: paths become strings."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return result


def difference(old: Config, new: Config) -> list[str]:
    """Lines `key: old -> new` for each setting whose change would make `new` another run than `old`."""
    was, now = dict(items(old)), dict(items(new))
    lines = [f"{k}: {was[k]} -> {now[k]}" for k in now if was[k] != now[k] and not k.startswith(FREE)]
    if new.train.epochs < old.train.epochs:
        lines.append(f"train.epochs: {old.train.epochs} -> {new.train.epochs} (may only grow)")
    return lines


def from_dict(cls: type[T], values: Any, where: str, prefix: str = "") -> T:
    """Builds the dataclass `cls` from a nested dict, as TOML or JSON give it.

    Args:
        where: the file that the values come from, for the error's sentence.

    Raises:
        UserError: an unknown key or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(values, dict):
        raise UserError(f"{where}: {prefix.rstrip('.') or 'the file'} must be a table of settings, not {values!r}")
    arguments = {}
    for raw, value in values.items():
        name = raw.replace("-", "_")
        if name not in known:
            if prefix + name in GONE and value == GONE[prefix + name]:
                continue
            near = _nearest(name, known)
            raise UserError(f"{where}: there is no setting {prefix}{raw}; {near}")
        arguments[name] = _convert(hints[name], value, where, prefix + name)
    return cls(**arguments)


def _nearest(name: str, known: set[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}"


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where, key + ".")  # type: ignore[arg-type]
    if typing.get_origin(hint) is Literal:
        if any(type(value) is type(a) and value == a for a in typing.get_args(hint)):  # True == 1 == 1.0
            return value
        raise UserError(f"{where}: {key} = {value!r}: must be one of {', '.join(map(repr, typing.get_args(hint)))}")
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    accepted: tuple[type, ...] = {float: (int, float), Path: (str, Path)}.get(hint, (hint,))
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where}: {key} = {value!r}: must be of type {hint.__name__.lower()}")
    return hint(value)


def load(name: str | None) -> Config:
    """The defaults, overridden by the preset or TOML file `name`; not yet validated."""
    if name is None:
        return Config()
    path = find_file("launch", name)
    return from_dict(Config, read_toml(path), str(path))


Filter = Literal["none", "median", "tv", "nlm", "bilateral"]


@dataclass(frozen=True, kw_only=True)
class DenoiseConfig:
    """Noise removal after generation. Each part works by itself; all off returns the image as it is."""

    gray: bool = True
    """Coloured noise: every channel becomes the luma (ITU-R 601)."""
    filter: Filter = "median"
    """median: isolated specks only; tv: total variation; nlm: non-local means; bilateral: mean of alike neighbours."""
    strength: float = 1.0
    """How much the filter removes; 0: nothing. median: specks of up to 6 * strength pixels (at 128 px);
    tv: weight 0.05 * strength; nlm: h 0.06 * strength; bilateral: sigma of tone 0.1 * strength (black 0, white 1)."""
    shadows: bool = True
    """Give the page its own tone where it darkens smoothly towards its edge, and where it is brighter than it is; ink
    is kept."""

    def check(self) -> "DenoiseConfig":
        """Returns itself, or raises UserError where a value is out of its range."""
        if self.filter not in get_args(Filter):
            raise UserError(f"denoise.filter = {self.filter!r}: must be one of {', '.join(get_args(Filter))}")
        if not 0 <= self.strength < math.inf:
            raise UserError(f"denoise.strength = {self.strength!r}: must be a finite number, 0 (nothing) or more")
        return self
