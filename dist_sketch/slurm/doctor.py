"""`dist-sketch doctor`: checks on the login node what would make a job fail after hours in the queue."""

import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from dist_sketch.commands.data import PackCommand
from dist_sketch.commands.infer import InferCommand
from dist_sketch.commands.train import TrainCommand, as_typed, preset
from dist_sketch.core.config import Config
from dist_sketch.core.config_rules import difference, validate
from dist_sketch.core.errors import UserError
from dist_sketch.core.places import Address, Place, place
from dist_sketch.core.saved import MOST_PARTS, config_of, read_settings
from dist_sketch.core.words import plain
from dist_sketch.slurm.numbers import MOST_NODES, MOST_RANKS, MOST_TASKS, number, seconds
from dist_sketch.slurm.submit import Request, experiment_command

GB = 1e9
HASHED_GB = 20.0  # a login node should not read more; of larger shards only the lengths are compared
LOOKS_AT_ONCE = 16  # at the lengths of shards


class Check(NamedTuple):
    """The result of a check."""

    what: str
    state: Literal["good", "note", "bad"]
    found: str


def report(requests: Sequence[Request]) -> int:
    """Prints the checks of some jobs; returns how many failed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    made: list[Place] = []
    table = Table("job", "check", "", "found")
    style = {"good": "green", "note": "yellow", "bad": "red"}
    bad = 0
    for request in requests:
        for line in check(request, made):
            bad += line.state == "bad"
            table.add_row(request.kind, line.what, f"[{style[line.state]}]{line.state}[/]", escape(plain(line.found)))
        made.append(place(request.setting("out")))
    if not shutil.which("sbatch"):
        table.add_row("", "SLURM", "[yellow]note[/]", "there is no sbatch here: is this the login node?")
    Console().print(table)
    return bad


def check(request: Request, made: Sequence[Place]) -> Iterator[Check]:
    """The checks of a job; `made` are places that earlier jobs of its chain will make."""
    yield from {"pack": _pack, "train": _train, "infer": _infer, "experiment": _experiment}[request.kind](request, made)
    out = place(request.setting("out"))
    if isinstance(out, Path):
        yield _writable(out)
    else:
        yield _try("output", lambda: _uploadable(out, request.options))
    yield from _logs(request)
    if os.environ.get("SBATCH_ARRAY_INX"):
        yield Check("array", "bad", "SBATCH_ARRAY_INX makes an array of every job: unset it, and give --array")
    if request.kind in ("pack", "infer"):
        mode, words = "off", [part for word in request.options for part in word.split("=", 1)]
        for option, value in pairwise(words):
            mode = value if option == "--track.wandb" else mode
        yield _tracking(mode)


def _tracking(mode: str) -> Check:
    """Where W&B's log goes, by the setting track.wandb."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or "offline"
    return Check("W&B", "good", f"{mode}; dist-sketch sync afterwards" if mode == "offline" else mode)


def _pack(request: Request, made: Sequence[Place]) -> Iterator[Check]:
    from dist_sketch.data import recipe

    source, root, out = (request.setting(name) for name in ("source", "root", "out"))

    options, given = _options(request, PackCommand, source), PackCommand(source=source, out=Path(out))
    if options.state == "good":
        given = tyro.cli(PackCommand, args=[source, "--out", "x", *request.options])

    def count() -> str:
        home = Path(root) if root else None
        found = recipe.load(source, home, given.val_fraction, given.layout, given.direction, given.test_fraction)
        pairs, problems = recipe.pairs(found)
        more = f", {len(problems)} file(s) cannot be used: {problems[0].why}" if problems else ""
        return f"{len(pairs)} pairs{more}"

    yield options
    yield _try("source", count)
    yield from _parts(request)
    if not isinstance(place(out), Address) and (Path(out) / "manifest.json").exists():
        yield _shards(Path(out))


def _train(request: Request, made: Sequence[Place]) -> Iterator[Check]:
    words = ["--data.shards", request.setting("shards"), "--out", request.setting("out")]
    words += as_typed(request.options)
    if request.setting("config"):
        words = ["--config", request.setting("config"), *words]
    given = tyro.cli(TrainCommand, prog="dist-sketch train", args=words, default=preset(words))
    if request.slurm("array"):
        found = f"--array={request.slurm('array')}: all tasks would train into {request.setting('out')}"
        yield Check("array", "bad", f"{found}: give each training an out= and a job of its own, or submit experiment")
    yield _tracking(given.settings.track.wandb)
    yield from _training(request, validate(given.settings), Path(request.setting("out")), made)


def _training(request: Request, config: Config, run: Path, made: Sequence[Place]) -> Iterator[Check]:
    shards, batch = config.data.shards, config.data.batch_size
    assert shards is not None
    nodes = number("--nodes", request.slurm("nodes") or "1", 1, MOST_NODES)
    ranks_per_node = _ranks_per_node(request)
    ranks = nodes * ranks_per_node
    world = f"{ranks} rank(s) on {nodes} node(s); global batch {batch}, {batch / ranks:g} per rank"
    if batch % ranks:
        yield Check(
            "ranks", "bad", f"{world}: must be a whole number; --data.batch-size {ranks * math.ceil(batch / ranks)}"
        )
    else:
        yield Check("ranks", "good", world)
    if request.slurm("ntasks-per-node") != "1":
        yield Check("ranks", "bad", "--ntasks-per-node must be 1: one launcher per node, which starts all its ranks")
    yield _cpus(request, ranks_per_node * (config.data.workers + 1), f"{config.data.workers} loader(s) per rank")
    yield _disk(run, _checkpoint_bytes(config), f"{config.checkpoint.keep} checkpoints")
    if config.checkpoint.choose == "kid":
        fid = _fid("checkpoint.choose = 'kid' needs them")
        yield fid if fid.state == "good" else fid._replace(state="bad")
    elif config.train.validate_fid and config.train.validate_interval_epochs:
        yield _fid("validation leaves FID out")
    found = _shards(shards, made)
    yield found
    if shards in made:
        return
    if found.state != "bad":
        yield from _with_data(request, config, ranks, run)
    if (run / "config.json").exists():
        changes = difference(config_of(read_settings(run), run), config)
        yield Check("run", "bad" if changes else "good", "; ".join(changes) or f"{run}: will be continued")


def _with_data(request: Request, config: Config, ranks: int, run: Path) -> Iterator[Check]:
    from dist_sketch.data.order import length, steps_an_epoch
    from dist_sketch.data.selection import chosen, weights
    from dist_sketch.data.shards import Shards
    from dist_sketch.tracking.tracker import read_metrics, seconds_a_step
    from dist_sketch.training import setup

    assert config.data.shards is not None
    shards = chosen(Shards(config.data.shards, "train"), config.data.where)
    places = length(len(shards), weights(shards, config.data.weights))

    def fit() -> str:
        setup.check(config, shards, ranks)
        return "they fit the data and the ranks"

    if config.data.batch_size % ranks == 0:
        yield _try("settings", fit)
    time, attempts = request.slurm("time"), 1 + number("requeues", request.setting("requeues"))
    try:
        limit = seconds(time)
    except ValueError:
        yield Check("time", "bad", f"--time={time}: is not a time as SLURM writes it (4:00:00, 2-12)")
        return
    if limit == math.inf:
        yield Check("time", "note", f"--time={time}: no limit, as far as the partition allows it")
        return
    steps = steps_an_epoch(places, config.data.batch_size) * config.train.epochs
    records = read_metrics(run) if (run / "metrics.jsonl").exists() else []
    logged = [m for m in records if m.get("speed/step_s")]
    if logged:
        # With validations and all else that an epoch does, as soon as two epochs have shown it
        steps, step_s = steps - logged[-1]["step"], seconds_a_step(records) or logged[-1]["speed/step_s"]
        needed = max(1, math.ceil(steps * step_s / limit))
        found = f"{steps} steps to go at {step_s:.3g} s: {steps * step_s / 3600:.1f} h, {needed} leg(s) of {time}"
        state: Literal["good", "bad"] = "good" if needed <= attempts else "bad"
        yield Check("time", state, f"{found}; requeues={attempts - 1} allow {attempts}")
    else:
        most = f"{steps} steps; {attempts} leg(s) of {time} allow {limit * attempts / max(steps, 1):.2g} s per step"
        yield Check("time", "note", f"{most} (measure it: `dist-sketch bench step` on a node, or this run's own log)")


def _infer(request: Request, made: Sequence[Place]) -> Iterator[Check]:
    from dist_sketch.data import inputs
    from dist_sketch.model import pretrained

    if request.setting("merge") == "1" and not request.slurm("array"):
        return
    run, source = Path(request.setting("run")), place(request.setting("input"))
    if run in made:
        yield Check("run", "good", f"{run}: an earlier job of the chain trains it")
    else:
        yield _try("run", lambda: f"{run}: step {pretrained.find_weights(pretrained.located(run))[1]}")
    if isinstance(source, Address) or source in made or (source / "manifest.json").is_file():
        yield _shards(source, made)
    else:
        yield _try("input", lambda: f"{source}: {len(inputs.inputs(source, 'val'))} image(s)")
    yield from _parts(request)
    yield _options(request, InferCommand, "--run", str(run), "--input", str(source))
    yield _fid("FID and KID are left out of the scores")
    yield _cpus(request, _ranks_per_node(request), "one per rank; more of them remove noise and write files")


def _parts(request: Request) -> Iterator[Check]:
    """Whether the tasks of an array make all parts of what is merged then."""
    array, parts = request.slurm("array"), request.setting("parts")
    if parts:
        number("parts", parts, 1, MOST_PARTS)
    last = _last_task(array) if array else 0
    numbered = re.fullmatch(r"1-\d+(?:%\d+)?", array)
    if last > MOST_PARTS or (parts and last > int(parts)):
        yield Check("array", "bad", f"--array={array}: there is no part {last} of {parts or f'at most {MOST_PARTS:,}'}")
    elif numbered and int(parts or last) == last:
        yield Check("array", "good", f"{last} parts")
    elif array and parts:
        yield Check("array", "note", f"tasks {array} of {parts} parts; the merge needs all of them")
    elif array:
        yield Check("array", "bad", f"--array={array}: must be 1-N, or give parts=N")


def _experiment(request: Request, made: Sequence[Place]) -> Iterator[Check]:
    try:
        runs = experiment_command(request).plan().runs
    except UserError as e:
        yield Check("plan", "bad", str(e))
        return
    left = [run for run in runs if not run.drawn()]
    done = f", {len(runs) - len(left)} of them done" if len(left) < len(runs) else ""
    yield Check("plan", "good", f"{len(runs)} training(s){done}")
    yield _tracking(runs[0].config.track.wandb)
    array = request.slurm("array")
    if array and not array.startswith("%") and _last_task(array) > len(runs):
        yield Check("array", "bad", f"--array={array}: the plan has only the trainings 1 to {len(runs)}")
    # Trainings that agree in these settings give the same checks.
    kinds = {(c.data, c.norm, c.generator, c.checkpoint): run for run in reversed(left or runs) if (c := run.config)}
    for run in reversed(kinds.values()):
        config = replace(run.config, data=replace(run.config.data, shards=place(request.setting("data"))))
        yield from _training(request, config, run.folder, made)
    wanted = sum(_checkpoint_bytes(run.config) for run in runs)
    yield _disk(Path(request.setting("out")), wanted, "checkpoints of all trainings")


def _try(what: str, look: Callable[[], str]) -> Check:
    try:
        return Check(what, "good", look())
    except UserError as e:
        return Check(what, "bad", str(e))


def _options(request: Request, command: Any, *words: str) -> Check:
    """Whether the command accepts these options; tyro prints what it does not accept."""
    try:
        tyro.cli(command, prog=f"dist-sketch {request.kind}", args=[*words, "--out", "x", *request.options])
    except SystemExit:
        return Check("options", "bad", f"dist-sketch {request.kind} does not accept them: see above")
    return Check("options", "good", " ".join(request.options) or "none")


def _ranks_per_node(request: Request) -> int:
    if request.setting("procs"):
        return number("procs", request.setting("procs"), 1, MOST_RANKS)
    gpus = request.slurm("gpus-per-node").rpartition(":")[2] or "0"  # 8, or h100:8
    return number("--gpus-per-node", gpus, most=MOST_RANKS) or 1


def _last_task(array: str) -> int:
    """The largest index of an array, which sbatch takes as 1-8, 0-6:2%4 or 1,3-5.

    Raises:
        UserError: it is none of these, or is larger than SLURM counts.
    """
    spans = r"\d+(-\d+(:\d+)?)?"
    if not re.fullmatch(rf"{spans}(,{spans})*(%\d+)?", array, re.ASCII):
        raise UserError(f"--array={array}: must be numbers and ranges, as in 1-8, 1,3-5 or 1-8%2")
    ends = re.findall(r"(?:^|[,-])(\d+)", array.partition("%")[0])
    return max(number("--array", end, most=MOST_TASKS) for end in ends)


def _shards(shards: Place, made: Sequence[Place] = ()) -> Check:
    from dist_sketch.data.manifest import read_manifest
    from dist_sketch.data.store import has_size
    from dist_sketch.data.verify import verify

    def checked() -> str:
        splits = read_manifest(shards)["splits"]
        files = [file for split in splits.values() for file in split["shards"]]
        size = sum(file["bytes"] for file in files) / GB
        counts = ", ".join(f"{name} {split['count']}" for name, split in splits.items())
        if size <= HASHED_GB and not isinstance(shards, Address):
            verify(shards)
            return f"{shards}: every hash is right ({counts})"
        with ThreadPool(LOOKS_AT_ONCE) as pool:
            right = pool.map(lambda file: has_size(shards, file["file"], file["bytes"]), files)
        for file, is_right in zip(files, right, strict=True):
            if not is_right:
                raise UserError(f"{shards / file['file']}: is missing or has another length than the manifest says")
        return f"{shards}: every length is right ({counts}; {size:.0f} GB: hashes by `dist-sketch verify`, in a job)"

    if shards in made:
        return Check("shards", "good", f"{shards}: an earlier job of the chain packs them")
    return _try("shards", checked)


def _uploadable(address: Address, options: Sequence[str]) -> str:
    from dist_sketch.data import upload

    upload.look(address, "--force" in options)
    return f"{address}: can be written"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest of its parents that exists."""
    return next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())


def _writable(folder: Path) -> Check:
    existing = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as e:
        return Check("output", "bad", f"{existing}: cannot be written ({e.strerror})")
    if existing.is_relative_to(os.environ.get("TMPDIR") or "/tmp"):
        return Check("output", "note", f"{folder}: can be written, but is a temporary folder: can the nodes see it?")
    return Check("output", "good", f"{folder}: can be written")


def _logs(request: Request) -> Iterator[Check]:
    """SLURM makes no folders: a job whose log has none ends at once, without a word."""
    start = Path(request.given.get("--chdir", ""))
    if not start.is_dir():
        yield Check("chdir", "bad", f"--chdir={start}: there is no such folder, and SLURM does not make it")
    for option in ("output", "error"):
        folder = os.path.dirname(request.slurm(option))
        if "%" in folder or "\\" in folder:
            yield Check("log", "note", f"--{option}: {folder} must exist when the job starts; SLURM does not make it")
        elif folder and not (start / folder).is_dir():
            yield Check("log", "bad", f"--{option}: {folder} is missing, and SLURM does not make it: mkdir -p {folder}")


def _disk(folder: Path, wanted: float, what: str) -> Check:
    free = shutil.disk_usage(_existing(folder)).free
    found = f"{what} take {wanted / GB:.1f} GB, {free / GB:.0f} GB are free"
    return Check("disk", "good" if free > wanted else "bad", found)


def _checkpoint_bytes(config: Config) -> int:
    """The size of all checkpoints that exist at once."""
    from dist_sketch.training.forecast import checkpoints

    count, size = checkpoints(config)
    return count * size


def _cpus(request: Request, wanted: int, what: str) -> Check:
    cpus = number("--cpus-per-task", request.slurm("cpus-per-task") or "1", 1)
    found = f"{cpus} CPU(s) per node for {wanted} process(es) ({what})"
    if cpus >= wanted:
        return Check("CPUs", "good", found)
    return Check("CPUs", "note", f"{found}: they must share; --cpus-per-task={wanted}")


def _fid(without: str) -> Check:
    from dist_sketch.metrics import inception

    try:
        weights = inception.find()
    except UserError as e:
        return Check("FID", "bad", str(e))
    if weights is None:
        return Check("FID", "note", f"no weights here: {without}; nodes cannot fetch them: dist-sketch weights")
    return Check("FID", "good", f"weights at {weights.path}")
