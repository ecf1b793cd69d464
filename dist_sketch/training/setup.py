"""Checks before a training run writes anything: the facts that follow from its configuration, an earlier attempt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from dist_sketch.core import saved
from dist_sketch.core.config import Config, items
from dist_sketch.core.config_rules import difference
from dist_sketch.core.errors import UserError
from dist_sketch.core.folders import Lock, refuse_foreign, tidy
from dist_sketch.core.precision import resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.core.words import plain
from dist_sketch.data.manifest import manifest_hash, read_manifest
from dist_sketch.data.order import check_batch, length, steps_an_epoch
from dist_sketch.data.selection import chosen, refuse_none, weights
from dist_sketch.data.shards import Shards
from dist_sketch.data.store import Access
from dist_sketch.metrics import inception
from dist_sketch.model import networks
from dist_sketch.tracking.tracker import revision, versions
from dist_sketch.tracking.wandb_run import new_id

THEN = ", then "  # stands between the devices of a run that was continued on another one


def resolve(config: Config, ranks: Ranks) -> dict[str, Any]:
    """Checks `config` against data and machine; returns the facts that follow from them.

    Raises:
        UserError: they do not fit.
    """
    if config.data.shards is None:
        raise UserError("data.shards is not set: give --data.shards FOLDER, made by `dist-sketch pack`")
    packed = Shards(config.data.shards, "train", Access.of(config.data))
    choose, where = config.checkpoint.choose, config.data.where
    shards = chosen(packed, where)
    refuse_none(shards, packed, where)
    needs_val = packed.paired.get("val") and (where or choose != "last")
    packed_val = Shards(config.data.shards, "val", packed.access) if needs_val else None
    count = len(chosen(packed_val, where)) if packed_val else 0  # of validation pairs
    if not shards.has_sketch:
        raise UserError(f"{config.data.shards}: its training split has lines without sketches; pack pairs")
    if config.train.sync_batchnorm and ranks.device.type == "cpu":
        raise UserError("train.sync_batchnorm = true: CPUs have no synchronized BatchNorm; use norm = 'instance'")
    if choose != "last":
        needed = 2 if choose == "kid" else 1  # one picture has no distribution
        if min(count, config.train.validate_limit or count) < needed:
            raise UserError(
                f"checkpoint.choose = {choose!r}: needs {needed} validation pair(s) at least; {config.data.shards} has "
                f"{count}{' that data.where chooses' if where else ''}, and train.validate_limit is "
                f"{config.train.validate_limit}"
            )
        if choose == "kid" and inception.find() is None:
            raise UserError(f"checkpoint.choose = 'kid': no weights of FID's network on this machine; {inception.WAYS}")
    places = check(config, shards, ranks.world_size)
    pairs = {"pairs": len(shards)}
    if where:
        pairs |= {"pairs_packed": len(packed), "val_pairs": count, "val_pairs_packed": len(packed_val or ())}
    if config.data.weights:
        pairs["pairs_an_epoch"] = places
    steps = steps_an_epoch(places, config.data.batch_size)
    manifest = read_manifest(config.data.shards)
    return {
        "size": shards.size,
        **({"fit": shards.fit} if shards.fit != "squash" else {}),
        "data": manifest["recipe"],
        "license": manifest["license"],
        "manifest_sha256": manifest_hash(config.data.shards),
        **pairs,
        "steps_an_epoch": steps,
        "steps": steps * config.train.epochs,
        "world_size": ranks.world_size,
        "global_batch": config.data.batch_size,
        "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else ranks.device.type,
        "precision": resolve_precision(config.train.precision, ranks.device),
        "code": revision(),
        "versions": versions(),
    }


def check(config: Config, shards: Shards, world_size: int) -> int:
    """Checks that `world_size` ranks can train on these pairs with this configuration; returns the places of an epoch.

    Raises:
        UserError: they cannot.
    """
    places = length(len(shards), weights(shards, config.data.weights))
    check_batch(config.data.batch_size, world_size, places)
    share = config.data.batch_size // world_size
    if share % config.train.accumulate:
        raise UserError(f"train.accumulate = {config.train.accumulate}: does not divide the {share} pair(s) of a rank")
    networks.check_config(config, shards.size, share // config.train.accumulate)
    return places


def previous_attempt(out: Path, config: Config, facts: dict[str, Any], grow: bool = True) -> dict[str, Any] | None:
    """What lies in `out`: None for a new run, else its status, its epochs, and the facts that it keeps.

    These are all devices with the present one, and what it began with. The epochs may be more than before, or any
    number if they shall not `grow`, because the run then keeps its length.

    Raises:
        UserError: `out` is something else, or a run with another configuration.
    """
    if not (out / "config.json").exists():
        refuse_foreign(out, "a run folder")
        return None
    kept = saved.read_settings(out)
    old, was = saved.config_of(kept, out), _facts(kept, out)
    config = config if grow else replace(config, train=replace(config.train, epochs=old.train.epochs))
    changes = difference(old, config)
    if was["manifest_sha256"] != facts["manifest_sha256"]:
        changes.append("data.shards: another data set (its manifest differs)")
    if was["precision"] != facts["precision"]:
        changes.append(f"train.precision: {was['precision']} -> {facts['precision']} (resolved)")
    if changes:
        undo = "\n  ".join(changes)
        raise UserError(f"{out}: holds a run with another configuration; choose another --out, or undo:\n  {undo}")
    status = saved.read_status(out)
    device, now = was.get("device") or facts["device"], facts["device"]
    if device.split(THEN)[-1] != now:
        device += THEN + now
    kept_facts = {"device": device} | {k: was[k] for k in ("began_with",) if k in was}
    return {"status": status, "epochs": old.train.epochs, "init_from": old.init_from, "facts": kept_facts}


def _facts(kept: dict[str, Any], out: Path) -> dict[str, Any]:
    """The facts in a run's config.json; an export, say, lacks some of those that a run is continued by."""
    facts = kept.get("facts") or {}
    for key in ("manifest_sha256", "precision", "run_id"):
        if key not in facts:
            raise UserError(f"{out / 'config.json'}: facts.{key} is missing: this is not the folder of a run")
    return facts


def claim(out: Path, config: Config, facts: dict[str, Any], lock: Lock) -> str:
    """Takes the run's folder for this process.

    Returns:
        The run's W&B id: the same for all attempts, a new one for a new run.

    Raises:
        UserError: another process holds the folder, or has begun another run there in the meantime.
    """
    lock.acquire()
    tidy(out)
    if previous_attempt(out, config, facts) is None:
        return new_id()
    return str(_facts(saved.read_settings(out), out)["run_id"])


def as_long_as_before(config: Config, facts: dict[str, Any], previous: dict[str, Any]) -> Config:
    """The configuration with the epochs of the run that is there; changes `facts` likewise.

    For a command without --train.epochs: more epochs are then only a default's or a preset's.
    """
    facts["steps"] = facts["steps_an_epoch"] * previous["epochs"]
    return replace(config, train=replace(config.train, epochs=previous["epochs"]))


def finished(previous: dict[str, Any], config: Config) -> bool:
    """Whether the run in the folder is done.

    How long it shall be stands in config.json, how far it has come in status.json. A run that grows has the first
    before the second.
    """
    status = previous["status"]
    return status.get("state") == "finished" and status.get("epochs", 0) >= config.train.epochs


def show(config: Config, facts: dict[str, Any], out: Path, previous: dict[str, Any] | None) -> None:
    """Prints every setting that is not the default, then the facts; warns where more epochs change the rates."""
    default = dict(items(Config()))
    lines = {"out": out} | {k: v for k, v in items(config) if v != default[k]}
    lines |= {k: v for k, v in facts.items() if k not in ("versions", "manifest_sha256", "began_with")}
    for key in ("pairs", "val_pairs"):
        if (packed := lines.pop(f"{key}_packed", None)) is not None:
            lines[key] = f"{facts[key]:,} of {packed:,}, chosen by data.where"
    show_lines(lines)
    if previous and config.optim.decay and previous["epochs"] < config.train.epochs:
        print(
            f"warning: the learning rates were planned to reach 0 after {previous['epochs']} epochs and now reach it "
            f"after {config.train.epochs}: the result differs from a run of {config.train.epochs} epochs from the start"
        )


def show_lines(lines: dict[str, Any]) -> None:
    """Prints names and values in two columns."""
    text = "\n".join(f"[bold]{k:28}[/bold] {escape(plain(str(v)))}" for k, v in lines.items())
    Console(soft_wrap=True, highlight=False).print(text)
