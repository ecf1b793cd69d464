"""`dist-sketch doctor`: looks, on the login node, for what would make a job fail after hours in the queue."""

import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json
from dist_sketch.slurm.submit import Request, plan_of

GB = 1e9


HASHED_GB = 20.0  # larger shards are not read on a login node; only their lengths are compared


ADAM = 3  # numbers kept for each weight: itself and two means


class Check(NamedTuple):
    """What was looked at, and what was found."""

    what: str
    state: Literal["good", "note", "bad"]
    found: str


def check(request: Request, made: Sequence[Path]) -> Iterator[Check]:
    """The checks of a job.

    Args:
        made: folders that earlier jobs of a chain will make.
    """
    yield from {"pack": _pack, "train": _train, "infer": _infer, "experiment": _experiment}[request.kind](request, made)
    yield _writable(Path(request.setting("out")))
    yield _wandb(request)


def _pack(request: Request, made: Sequence[Path]) -> Iterator[Check]:
    from dist_sketch.commands import pack
    from dist_sketch.data import recipe

    yield _options(request, pack.PackCommand, request.setting("source"))
    source, root, out = (request.setting(name) for name in ("source", "root", "out"))

    def count() -> str:
        pairs, problems = recipe.pairs(recipe.load(source, Path(root) if root else None, None))
        more = f", {len(problems)} file(s) cannot be used: {problems[0].why}" if problems else ""
        return f"{len(pairs)} pairs{more}"

    yield _try("source", count)
    if (Path(out) / "manifest.json").exists():
        yield _shards(Path(out))


def _train(request: Request, made: Sequence[Path]) -> Iterator[Check]:
    from dist_sketch.commands import train

    words = ["--data.shards", request.setting("shards"), "--out", request.setting("out"), *request.options]
    if request.setting("config"):
        words = ["--config", request.setting("config"), *words]
    given: train.TrainCommand = tyro.cli(
        train.TrainCommand, prog="dist-sketch train", args=words, default=train.preset(words)
    )
    yield from _training(request, cfg.validate(given.settings), Path(request.setting("out")), made)


def _training(request: Request, config: Config, run: Path, made: Sequence[Path]) -> Iterator[Check]:
    assert config.data.shards is not None
    nodes, ranks_a_node = _number("--nodes", request.slurm("nodes") or "1"), _ranks_a_node(request)
    ranks, share = nodes * ranks_a_node, config.data.batch_size / (nodes * ranks_a_node)
    world = f"{ranks} rank(s) on {nodes} node(s); global batch {config.data.batch_size}, {share:g} a rank"
    if share != int(share):
        yield Check("ranks", "bad", f"{world}: it must divide; --data.batch-size {ranks * math.ceil(share)}")
    else:
        yield Check("ranks", "good", world)
    if request.slurm("ntasks-per-node") != "1":
        yield Check("ranks", "bad", "--ntasks-per-node must be 1: one launcher a node, which starts a process a GPU")
    yield _cpus(request, ranks_a_node * (config.data.workers + 1), f"{config.data.workers} loader(s) a rank")
    yield _disk(run, _checkpoints(config) * _checkpoint_bytes(config), f"{config.checkpoint.keep} checkpoints")
    if config.checkpoint.choose == "kid":
        fid = _fid("checkpoint.choose = 'kid' needs them")
        yield fid if fid.state == "good" else fid._replace(state="bad")
    elif config.train.validate_fid and config.train.validate_interval_epochs:
        yield _fid("validation leaves FID out")
    if config.data.shards in made:
        yield Check("shards", "good", f"{config.data.shards}: an earlier job of the chain packs them")
        return
    yield (shards := _shards(config.data.shards))
    if shards.state != "bad":
        if share == int(share):
            yield _try("settings", lambda: _fit(config, ranks))
        yield _time(request, config, run)
    if (run / "config.json").exists():
        old = cfg.from_dict(Config, read_json(run / "config.json")["config"], str(run / "config.json"))
        changes = cfg.difference(old, config)
        yield Check("run", "bad" if changes else "good", "; ".join(changes) or f"{run}: goes on")


def _fit(config: Config, ranks: int) -> str:
    from dist_sketch.data.shards import Shards
    from dist_sketch.training import setup

    assert config.data.shards is not None
    setup.check(config, Shards(config.data.shards, "train"), ranks)
    return "they fit the data and the ranks"


def _infer(request: Request, made: Sequence[Path]) -> Iterator[Check]:
    if request.setting("merge") == "1":
        return
    from dist_sketch.commands import infer
    from dist_sketch.data import recipe
    from dist_sketch.model import pretrained

    run, source = Path(request.setting("run")), Path(request.setting("input"))
    if run in made:
        yield Check("run", "good", f"{run}: an earlier job of the chain trains it")
    else:
        yield _try("run", lambda: f"{run}: step {pretrained.find_weights(pretrained.located(run))[1]}")
    if source in made:
        yield Check("input", "good", f"{source}: an earlier job of the chain packs it")
    elif (source / "manifest.json").is_file():
        yield _shards(source)
    else:
        yield _try("input", lambda: f"{source}: {len(recipe.inputs(source, 'val'))} image(s)")
    if request.slurm("array"):
        yield _parts(request)
    yield _options(request, infer.command(), "--run", str(run), "--input", str(source))
    yield _fid("FID and KID are left out of the scores")
    yield _cpus(request, _ranks_a_node(request), "one a rank; the others remove noise and write files")


def _parts(request: Request) -> Check:
    array, parts = request.slurm("array"), request.setting("parts")
    found = re.fullmatch(r"1-(\d+)(?:%\d+)?", array)
    if found and parts in ("", found[1]):
        return Check("array", "good", f"{found[1]} parts")
    if parts:
        return Check("array", "note", f"tasks {array} of {parts} parts; the merge needs all of them")
    return Check("array", "bad", f"--array={array}: must be 1-N, or say parts=N")


def _options(request: Request, command: Any, *words: str) -> Check:
    """Whether the command takes these options; tyro itself explains what it does not."""
    try:
        tyro.cli(command, prog=f"dist-sketch {request.kind}", args=[*words, "--out", "x", *request.options])
    except SystemExit:
        return Check("options", "bad", f"dist-sketch {request.kind} does not take them: see above")
    return Check("options", "good", " ".join(request.options) or "none")


def _experiment(request: Request, made: Sequence[Path]) -> Iterator[Check]:
    try:
        jobs = plan_of(request).jobs
    except UserError as e:
        yield Check("plan", "bad", str(e))
        return
    left = [job for job in jobs if not job.drawn()]
    done = f", {len(jobs) - len(left)} of them done" if len(left) < len(jobs) else ""
    yield Check("plan", "good", f"{len(jobs)} training(s){done}")
    # Trainings of one batch size, network and choice of weights are alike in what is looked at here.
    kinds = {(c.data, c.norm, c.generator, c.checkpoint): job for job in reversed(left or jobs) if (c := job.config)}
    for job in reversed(kinds.values()):
        config = replace(job.config, data=replace(job.config.data, shards=Path(request.setting("data"))))
        yield from _training(request, config, job.run, made)
    wanted = sum(_checkpoints(job.config) * _checkpoint_bytes(job.config) for job in jobs)
    yield _disk(Path(request.setting("out")), wanted, "checkpoints of all trainings")


def _try(what: str, look: Any) -> Check:
    try:
        return Check(what, "good", look())
    except UserError as e:
        return Check(what, "bad", str(e))


def _ranks_a_node(request: Request) -> int:
    gpus = request.slurm("gpus-per-node").rpartition(":")[2] or "0"  # 8, or h100:8
    return _number("procs", request.setting("procs") or gpus) or 1


def _number(name: str, text: str) -> int:
    """A number of a request.

    Raises:
        UserError: it is none; a range of nodes neither: the batch must divide by the ranks.
    """
    if not text.isascii() or not text.isdigit():
        raise UserError(f"{name}={text}: must be a number")
    return int(text)


def _shards(shards: Path) -> Check:
    from dist_sketch.data import pack
    from dist_sketch.data.manifest import read_manifest

    def look() -> str:
        manifest = read_manifest(shards)
        files = [s for split in manifest["splits"].values() for s in split["shards"]]
        size = sum(s["bytes"] for s in files) / GB
        counts = ", ".join(f"{name} {split['count']}" for name, split in manifest["splits"].items())
        if size <= HASHED_GB:
            pack.verify(shards)
            return f"{shards}: every hash is right ({counts})"
        for s in files:
            file = shards / s["file"]
            if not file.is_file() or file.stat().st_size != s["bytes"]:
                raise UserError(f"{file}: is missing or has another length than the manifest says")
        return f"{shards}: every length is right ({counts}; {size:.0f} GB: hashes by `dist-sketch verify`, in a job)"

    return _try("shards", look)


def _writable(folder: Path) -> Check:
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as e:
        return Check("output", "bad", f"{there}: cannot be written ({e.strerror})")
    if there.is_relative_to(tempfile.gettempdir()):
        return Check("output", "note", f"{folder}: can be written, but is a temporary folder: do the nodes see it?")
    return Check("output", "good", f"{folder}: can be written")


def _disk(folder: Path, wanted: float, what: str) -> Check:
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    found = f"{what} take {wanted / GB:.1f} GB, {free / GB:.0f} GB are free"
    return Check("disk", "good" if free > wanted else "bad", found)


def _checkpoints(config: Config) -> int:
    """That lie on the disk at once: those that are kept, the best one, and the one that is being written."""
    return config.checkpoint.keep + 1 + (config.checkpoint.choose != "last")


def _checkpoint_bytes(config: Config) -> int:
    import torch

    from dist_sketch.model import networks

    with torch.device("meta"):
        nets = [networks.generator(config), networks.discriminator(config)]
    weights = [sum(p.numel() for p in net.parameters()) for net in nets]
    return 4 * (ADAM * sum(weights) + weights[0] * (config.generator.ema > 0))


def _cpus(request: Request, wanted: int, what: str) -> Check:
    cpus = _number("--cpus-per-task", request.slurm("cpus-per-task") or "1")
    found = f"{cpus} CPU(s) a node for {wanted} process(es) ({what})"
    if cpus >= wanted:
        return Check("CPUs", "good", found)
    return Check("CPUs", "note", f"{found}: they take turns; --cpus-per-task={wanted}")


def _fid(without: str) -> Check:
    from dist_sketch.metrics import inception

    try:
        weights = inception.find()
    except UserError as e:
        return Check("FID", "bad", str(e))
    if weights is None:
        return Check("FID", "note", f"no weights here: {without}; nodes cannot fetch them: dist-sketch weights")
    return Check("FID", "good", f"weights at {weights.path}")


def _wandb(request: Request) -> Check:
    mode = os.environ.get("WANDB_MODE") or "offline"
    told = {"offline": "offline; dist-sketch sync afterwards", "disabled": "off (WANDB_MODE)"}.get(mode, mode)
    if "--track.wandb" in request.options:
        told = request.options[request.options.index("--track.wandb") + 1] + " (--track.wandb)"
    return Check("W&B", "good", told)


def seconds(limit: str) -> float:
    """A time limit of SLURM's, s: minutes, minutes:s, hours:minutes:s, days-hours[:minutes[:s]]; infinity if none.

    Raises:
        UserError: it is no time.
    """
    if limit.upper() in ("", "0", "UNLIMITED", "INFINITE"):
        return math.inf
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if not found:
        raise UserError(f"--time={limit}: is no time as SLURM writes it (4:00:00, 2-12)")
    days, *rest = found.groups()
    a, b, c = (int(x or 0) for x in rest)
    if days is not None or rest[2] is not None:
        return ((int(days or 0) * 24 + a) * 60 + b) * 60 + c
    return a * 60 + b


def _time(request: Request, config: Config, run: Path) -> Check:
    from dist_sketch.data.loader import steps_an_epoch
    from dist_sketch.data.shards import Shards
    from dist_sketch.tracking.tracker import read_metrics

    assert config.data.shards is not None
    try:
        limit = seconds(request.slurm("time"))
    except UserError as e:
        return Check("time", "bad", str(e))
    steps = steps_an_epoch(len(Shards(config.data.shards, "train")), config.data.batch_size) * config.train.epochs
    legs = 1 + _number("requeues", request.setting("requeues"))
    told = [m for m in (read_metrics(run) if (run / "metrics.jsonl").exists() else []) if m.get("speed/step_s")]
    if not told:
        most = limit * legs / max(steps, 1)
        return Check(
            "time",
            "note",
            f"{steps} steps; {legs} leg(s) of {request.slurm('time')} are enough if one takes less than {most:.2g} s "
            "(unknown here: `dist-sketch bench step` on a node, or this run's own log once it has begun)",
        )
    wanted = (steps - told[-1]["step"]) * told[-1]["speed/step_s"]
    needed = math.ceil(wanted / limit) if limit < math.inf else 1
    found = f"{steps - told[-1]['step']} steps to go at {told[-1]['speed/step_s']:.3g} s: {wanted / 3600:.1f} h"
    found += f", {needed} leg(s) of {request.slurm('time')}"
    return Check("time", "good" if needed <= legs else "bad", f"{found}; requeues={legs - 1} allow {legs}")


def report(found: Sequence[Request]) -> int:
    """Prints the checks of some jobs; returns how many failed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    made: list[Path] = []
    table = Table("job", "check", "", "found")
    style = {"good": "green", "note": "yellow", "bad": "red"}
    bad = 0
    for request in found:
        for line in check(request, made):
            bad += line.state == "bad"
            table.add_row(request.kind, line.what, f"[{style[line.state]}]{line.state}[/]", escape(line.found))
        made.append(Path(request.setting("out")))
    if not shutil.which("sbatch"):
        table.add_row("", "SLURM", "[yellow]note[/]", "there is no sbatch here: is this the login node?")
    Console().print(table)
    return bad
