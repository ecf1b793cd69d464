"""What a training will take: parameters, disk and time, as far as they can be known before it runs."""

import time
from pathlib import Path
from typing import Any

import torch

from dist_sketch.core.config import Config
from dist_sketch.core.errors import SharedError
from dist_sketch.core.ranks import Ranks
from dist_sketch.core.words import duration
from dist_sketch.data.pixels import to_float
from dist_sketch.data.selection import chosen
from dist_sketch.data.shards import BadSample, Shards
from dist_sketch.data.store import Access
from dist_sketch.model import networks
from dist_sketch.tracking.tracker import read_metrics, seconds_a_step
from dist_sketch.training.policy import PolicyState, decide
from dist_sketch.training.step import Step
from dist_sketch.training.validation import Validation

ADAM_COPIES = 3  # a weight and its two moments
LINE_BYTES = 700  # of metrics.jsonl, for each logged step
WARM_UP_STEPS = 3  # that are slower than the others, and not measured


def parameters(config: Config) -> list[int]:
    """The numbers of weights of generator and discriminator."""
    with torch.device("meta"):
        nets = [networks.generator(config), networks.discriminator(config)]
    return [sum(p.numel() for p in net.parameters()) for net in nets]


def checkpoints(config: Config) -> tuple[int, int]:
    """How many checkpoints exist at once (those that are kept, the best one, one being written), bytes of each."""
    weights = parameters(config)
    numbers = ADAM_COPIES * sum(weights) + weights[0] * (config.generator.ema > 0)
    one = (8 if config.train.precision == "fp64" else 4) * numbers
    return config.checkpoint.keep + 1 + (config.checkpoint.choose != "last"), one


def told(config: Config, facts: dict[str, Any], out: Path, steps: int, ranks: Ranks) -> dict[str, str]:
    """What --dry-run adds to the settings. Every rank must call it.

    Args:
        facts: of `setup.resolve`.
        out: the run's folder, which may hold an earlier attempt.
        steps: how many real steps are made, in memory, to measure the time; 0: none.
    """
    generator, discriminator = parameters(config)
    count, size = checkpoints(config)
    c = config.train
    samples = _times(c.epochs, c.sample_interval_epochs)
    picture = samples * c.sample_count * 3 * 3 * facts["size"] ** 2 / 3  # about what PNG leaves
    log = facts["steps"] / config.track.log_interval_steps * LINE_BYTES
    training, val = _splits(config)
    scored = min(c.validate_limit or len(val), len(val)) if val else 0
    validations = _times(c.epochs, c.validate_interval_epochs)
    left_out = facts.get("pairs_an_epoch", facts["pairs"]) - facts["steps_an_epoch"] * config.data.batch_size
    other = "other ones each time" if config.data.shuffle else "the last ones"
    return {
        "weights": f"generator {generator:,}, discriminator {discriminator:,}",
        "validation pairs": f"{scored:,} of {len(val):,}, scored {validations} time(s)" if val else "none",
        "left out in an epoch": f"{left_out} pair(s), {other}: less than a batch" if left_out else "no pair",
        "disk": f"{_mb(count * size + picture + log)}: {count} checkpoints of {_mb(size)} at once, {samples} "
        f"picture(s) of samples, {_mb(log)} of log",
        "time": _time(config, facts, out, steps, ranks, training, validations, scored),
    }


def _splits(config: Config) -> tuple[Shards, Shards | None]:
    assert config.data.shards is not None
    packed, where = Shards(config.data.shards, "train", Access.of(config.data)), config.data.where
    val = chosen(Shards(packed.folder, "val", packed.access), where) if packed.paired.get("val") else None
    return chosen(packed, where), val if val is not None and len(val) else None


def _times(epochs: int, interval: int) -> int:
    """How often something is done that is done every so many epochs, and after the last one."""
    return -(-epochs // interval) if interval else 0


def _mb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def _time(
    config: Config,
    facts: dict[str, Any],
    out: Path,
    steps: int,
    ranks: Ranks,
    training: Shards,
    validations: int,
    scored: int,
) -> str:
    """A sentence on the time that the run takes, or still takes, and how this is known."""
    done, step_s = ranks.main_decides(lambda: earlier_speed(out))
    left = max(0, facts["steps"] - done)
    if not left:
        return "none: all steps are made"
    if steps:
        step_s, pair_s = measured(config, facts, steps, ranks, training)
        scoring_s = validations * scored * pair_s / ranks.world_size * left / facts["steps"]
        whole, scoring = duration(left * step_s + scoring_s), duration(scoring_s)
        return (
            f"about {whole}: {left:,} steps of {1000 * step_s:.0f} ms, as {steps} of them took in memory, and "
            f"{scoring} of validation; waiting for data and saving come on top"
        )
    if step_s is not None:
        return f"about {duration(left * step_s)} for the {left:,} steps that are left, at the speed of the last epochs"
    return f"not known before it has run; `--dry-run-steps 20` makes 20 of the {left:,} steps in memory and tells it"


def earlier_speed(out: Path) -> tuple[int, float | None]:
    """The steps of the run that is there, and its seconds a step with all that an epoch does; None if unknown."""
    records = read_metrics(out)
    return max((r["step"] for r in records), default=0), seconds_a_step(records)


def measured(config: Config, facts: dict[str, Any], steps: int, ranks: Ranks, training: Shards) -> tuple[float, float]:
    """Makes real steps on the first training pairs, in memory; returns seconds a step, and seconds a scored pair.

    Raises:
        UserError: no training pair can be read.
    """
    torch.manual_seed(config.train.seed)
    step = Step(config, ranks, facts["precision"], facts["steps"])
    share = config.data.batch_size // ranks.world_size
    read = training.stream(range(min(share, len(training))), config.data.channels)
    samples = [sample for _, sample in read if not isinstance(sample, BadSample)]
    if not samples:
        raise SharedError(f"{training.folder}: its first {share} pairs cannot be read; `dist-sketch verify` says why")
    batch = [samples[i % len(samples)] for i in range(share)]
    line, sketch = (torch.stack([getattr(s, side) for s in batch]).to(ranks.device) for side in ("line", "sketch"))
    decision = decide(PolicyState(), config.conditional, step=0, epoch=0)
    times: list[float] = []
    for i in range(1, WARM_UP_STEPS + steps + 1):
        made = step(to_float(line), to_float(sketch), decision, bad=0, stop=False)
        if i in (WARM_UP_STEPS, WARM_UP_STEPS + steps):
            ranks.to_host(made.reduced)  # waits for the device
            times.append(time.perf_counter())
    step_s = (times[1] - times[0]) / steps
    c = config.train
    fid = None if not c.validate_fid else 2048 if config.checkpoint.choose == "kid" else 64
    validation = Validation(training, config.data.channels, ranks, config.data.skip_bad, fid, config.data.where)
    each = 2 * ranks.world_size
    with step.averaged():
        validation.scores(step.drawing, each)
        began = time.perf_counter()
        validation.scores(step.drawing, each)
    return step_s, (time.perf_counter() - began) / 2
