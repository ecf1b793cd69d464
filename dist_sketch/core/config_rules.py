"""What a configuration may hold, and which of its settings may change when a run is continued."""

from collections.abc import Callable
from typing import Any

from dist_sketch.core import toml_dataclass
from dist_sketch.core.config import Config, GeneratorConfig, items
from dist_sketch.core.errors import SharedError
from dist_sketch.core.expression import Expression

# Settings that may change when a run is continued: paths, length, tolerances, logging, and how the same values are
# computed. `difference` has three exceptions.
FREE = (
    *("data.shards", "data.cache_mb", "data.workers", "data.memory_mb", "data.device_memory_mb"),
    *("data.stall_timeout_s", "data.skip_bad"),
    *("train.epochs", "train.accumulate", "train.nonfinite_limit", "train.rank_timeout_s"),
    *("train.hang_dump_s", "train.check_interval_steps"),
    *("loss.d_backward", "checkpoint.interval_steps", "checkpoint.keep", "track."),
)

LONGEST_S = 10**7  # of a time-out: 116 days. Libraries count time in numbers that hold no more than 292 years


# (keys, what is allowed, test); what `toml_dataclass.fits` refuses is always refused, as by the reader of config.json
_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    (
        "data.batch_size train.epochs train.nonfinite_limit train.accumulate conditional.timer conditional.hysteresis "
        "conditional.short_steps conditional.long_steps checkpoint.keep track.log_interval_steps",
        "at least 1",
        lambda v: v >= 1,
    ),
    (
        "data.cache_mb data.workers data.memory_mb data.device_memory_mb data.skip_bad data.stall_timeout_s "
        "train.sync_interval_steps train.validate_interval_epochs train.validate_limit train.sample_interval_epochs "
        "optim.clip_norm loss.lambda_l1 loss.lambda_ssim generator.detail generator.noise generator.enhance "
        "discriminator.fine conditional.loss_threshold conditional.growth conditional.longest_lock_steps "
        "checkpoint.interval_steps train.hang_dump_s",
        "0 or more",
        lambda v: v >= 0,
    ),
    (
        "optim.lr_g optim.lr_d loss.scale conditional.g_threshold track.timeout_s train.rank_timeout_s",
        "above 0",
        lambda v: v > 0,
    ),
    ("optim.beta1 optim.beta2 generator.dropout generator.ema", "in [0, 1)", lambda v: 0 <= v < 1),
    ("generator.width discriminator.width", "a multiple of 8 from 8 to 1024", lambda v: 8 <= v <= 1024 and v % 8 == 0),
    ("discriminator.scales", "from 1 to 4", lambda v: 1 <= v <= 4),
    ("generator.detail generator.noise generator.enhance data.workers", "at most 1024", lambda v: v <= 1024),
    ("data.batch_size train.epochs train.accumulate", "at most 1,000,000", lambda v: v <= 10**6),
    (
        "data.stall_timeout_s train.rank_timeout_s train.hang_dump_s track.timeout_s",
        f"at most {LONGEST_S:,}",
        lambda v: v <= LONGEST_S,
    ),
    ("train.check_interval_steps", "-1 or more", lambda v: v >= -1),
    ("optim.decay optim.inner", "from 0 to 1", lambda v: 0 <= v <= 1),
    ("train.seed", "from 0 to 2^63 - 1", lambda v: 0 <= v < 2**63),
    ("train.sample_count", "from 1 to 64", lambda v: 1 <= v <= 64),
    ("data.freehand", "from 0 to 64", lambda v: 0 <= v <= 64),
)


def validate(config: Config) -> Config:
    """Returns `config` as it is.

    Raises:
        UserError: a value is out of its range, or two values contradict each other.
    """
    values = dict(items(config))
    for keys, allowed, holds in _RULES:
        for key in keys.split():
            if not holds(values[key]) or not toml_dataclass.fits(values[key]):
                most = "2^63" if isinstance(values[key], int) else "10^38"
                raise SharedError(f"{key} = {values[key]!r}: must be {allowed}, and below {most}")
    for setting in ("data.where", "data.weights"):
        if values[setting]:
            Expression(values[setting], setting)
    choose = config.checkpoint.choose
    if choose != "last" and not config.train.validate_interval_epochs:
        raise SharedError(f"checkpoint.choose = {choose!r}: needs train.validate_interval_epochs above 0")
    if choose == "kid" and not config.train.validate_fid:
        raise SharedError("checkpoint.choose = 'kid': needs train.validate_fid")
    c = config.conditional
    if c.mode == "on" and c.g_threshold <= c.loss_threshold * c.hysteresis:
        raise SharedError(
            f"conditional.g_threshold = {c.g_threshold}: must be above loss_threshold * hysteresis = "
            f"{c.loss_threshold * c.hysteresis:g}, or both networks would be locked at once"
        )
    g, plain = config.generator, GeneratorConfig()
    own = [n for n in ("width", "upsample", "detail", "noise", "enhance") if getattr(g, n) != getattr(plain, n)]
    if g.network == "baseline" and own:
        raise SharedError(f"generator.network = 'baseline': has no {' and no '.join(own)}; remove that setting")
    if g.noise and not g.detail:
        raise SharedError(f"generator.noise = {g.noise}: is an input of the detail block; also set generator.detail")
    if config.optim.inner != 1 and not g.enhance:
        raise SharedError(f"optim.inner = {config.optim.inner}: is for the U-Net in an enhancer; set generator.enhance")
    if g.enhance and not g.detail:
        raise SharedError(f"generator.enhance = {g.enhance}: goes on from the detail block; also set generator.detail")
    if config.train.sync_batchnorm and config.norm != "batch":
        raise SharedError(f"train.sync_batchnorm = true: norm = {config.norm!r} has no batch statistics")
    if c.mode == "paper" and (c.timer_net, c.timer_unit) != ("d", "epochs"):
        raise SharedError("conditional.mode = 'paper': the paper's timer is for D and counts epochs; use mode = 'on'")
    return config


def difference(old: Config, new: Config) -> list[str]:
    """A line `key: old -> new` for each changed setting with which the run `old` cannot be continued.

    A micro-batch is a way to compute the same gradients, except with BatchNorm, whose statistics are then others.
    `init_from` may be written in another way, and need not exist any more.
    """
    was, now = dict(items(old)), dict(items(new))
    if old.init_from and new.init_from and old.init_from.resolve() == new.init_from.resolve():
        now["init_from"] = was["init_from"]
    lines = [f"{k}: {was[k]} -> {now[k]}" for k in now if was[k] != now[k] and not k.startswith(FREE)]
    if new.train.epochs < old.train.epochs:
        lines.append(f"train.epochs: {old.train.epochs} -> {new.train.epochs} (may only grow)")
    if old.norm == "batch" and new.train.accumulate != old.train.accumulate:
        change = f"train.accumulate: {old.train.accumulate} -> {new.train.accumulate}"
        lines.append(f"{change} (BatchNorm's statistics would be those of other micro-batches)")
    return lines
