"""From a preset to a plan: one plain command a line, and for each line whether it is done."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config, TrackConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json, write_atomic
from dist_sketch.core.folders import refuse_foreign
from dist_sketch.data.manifest import manifest_hash, read_manifest
from dist_sketch.experiments.presets import Claim, Exhibit, Method, Preset

PLAN, PAGE = "plan.txt", "compare.html"


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One training and the inference with its weights."""

    name: str  # of its row, with the seed
    rows: list[str]  # that share it
    config: Config
    run: Path
    output: Path
    train: str  # command lines
    infer: str
    infer_options: dict[str, Any]

    def trained(self) -> bool:
        """Whether the run has finished all its epochs."""
        status = json_or_empty(self.run / "status.json")
        return status.get("state") == "finished" and status.get("epochs", 0) >= self.config.train.epochs

    def drawn(self) -> bool:
        """Whether the output was drawn and scored with the weights that the run chose, and the options asked for."""
        if not self.trained():
            return False
        status, about = self.run / "status.json", json_or_empty(self.output / "infer.json")
        told = json_or_empty(status)
        try:
            newer = (self.output / "metrics.json").stat().st_mtime_ns >= status.stat().st_mtime_ns
        except OSError:
            return False
        mode = about.get("mode") or {}
        said = {**about, **mode, "mode": mode.get("statistics")}
        said |= {f"denoise.{k}": v for k, v in (about.get("denoise") or {}).items()}
        alike = all(said.get(k.replace("-", "_"), v) == v for k, v in self.infer_options.items())
        return newer and alike and about.get("step") == told.get("draws", told.get("step"))


@dataclass(frozen=True)
class Line:
    """A line of the plan: a job's training or its inference."""

    job: PlannedRun
    kind: Literal["train", "infer"]

    @property
    def text(self) -> str:
        """The command."""
        return self.job.train if self.kind == "train" else self.job.infer

    @property
    def name(self) -> str:
        """What it is called in messages, and its log."""
        return f"{self.job.name}-{self.kind}"

    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.job.trained() if self.kind == "train" else self.job.drawn()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an experiment runs, and what its page shows."""

    preset: Preset
    data: Path
    out: Path
    seeds: int
    parts: dict[str, Exhibit]
    claims: list[Claim]
    jobs: list[PlannedRun]  # all rows with seed 0, then with seed 1, ...

    @property
    def lines(self) -> list[Line]:
        """In the order of the plan: each training before its inference."""
        return [line for job in self.jobs for line in (Line(job, "train"), Line(job, "infer"))]

    def job(self, row: str, seed: int) -> PlannedRun:
        """The training that a row shares or has of its own."""
        return next(j for j in self.jobs if row in j.rows and j.config.train.seed == seed)

    def text(self) -> str:
        """The plan file."""
        head = [
            f"# {self.preset.title}: {', '.join(self.parts)}; {self.seeds} seed(s), {len(self.jobs)} training(s)",
            "# Each line is a command that can also be typed by hand, in this folder:",
            f"# {Path.cwd()}",
            "# A training has to come before its inference. What is finished is left out when the experiment goes on.",
        ]
        for job in self.jobs:
            shown = [f"{p}: {self.preset.rows[r].label}" for p, part in self.parts.items() for r in part.rows
                     if r in job.rows]  # fmt: skip
            head += ["", f"# {job.name} ({'; '.join(shown)})", job.train, job.infer]
        return "\n".join(head) + "\n"


def make(
    preset: Preset,
    *,
    data: Path,
    out: Path,
    base: Config,
    common: Config,
    seeds: int | None = None,
    epochs: int | None = None,
    only: Sequence[str] = (),
    launch: str = "dist-sketch",
) -> Plan:
    """Lays out the plan; writes nothing.

    Args:
        base: the configuration that `preset.config` names.
        common: the same with the user's settings for all trainings, which go to rows of another preset, too; a row's
            own settings win over them.
        epochs: of all trainings; default: what their presets say.
        only: names of parts; default: all but the optional ones.
        launch: how a line is started, in the place of `dist-sketch`.

    Raises:
        UserError: the data cannot be used, a part is unknown, a setting is out of its range.
    """
    parts = _choose(preset, only)
    seeds = preset.seeds if seeds is None else seeds
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be at least 1")
    splits = read_manifest(data)["splits"]
    for split in ("train", "val"):
        if split not in splits or not splits[split]["has_sketch"] or splits[split]["count"] < 1:
            raise UserError(f"{data}: has no {split} split with sketches; an experiment needs train and val")
    if common.data.shards != base.data.shards or common.train.seed != base.train.seed:
        raise UserError("--data.shards and --train.seed are set by the experiment itself: use --data and --seeds")
    everywhere: dict[str, Any] = {"track.group": common.track.group or preset.name}
    if epochs is not None:
        everywhere["train.epochs"] = epochs
    shared: dict[str, list[str]] = {}  # a configuration -> the rows that have it
    configs: dict[str, Config] = {}
    for name, row in preset.rows.items():
        config = _configure(_moved(base, common, row, preset, everywhere), row, f"rows.{name}")
        key = json.dumps(cfg.to_dict(config))
        configs[name] = config
        shared.setdefault(key, []).append(name)
    wanted = {row for part in parts.values() for row in part.rows}
    command, jobs = _command(launch), []
    for seed in range(seeds):
        for rows in shared.values():  # the first row of the file names a run, whatever --only says
            if wanted.intersection(rows):
                jobs.append(_job(rows, configs[rows[0]], base, seed, command, preset, data, out))
    claims = [c for c in preset.claims if all(wanted.intersection(_sharers(r, shared)) for r in c.rows)]
    return Plan(preset=preset, data=data, out=out, seeds=seeds, parts=parts, claims=claims, jobs=jobs)


def _sharers(row: str, shared: dict[str, list[str]]) -> list[str]:
    return next(rows for rows in shared.values() if row in rows)


def _choose(preset: Preset, only: Sequence[str]) -> dict[str, Exhibit]:
    strange = [name for name in only if name not in preset.parts]
    if strange:
        raise UserError(f"--only: there is no {strange[0]!r} in {preset.name}; there are {', '.join(preset.parts)}")
    return {n: p for n, p in preset.parts.items() if (n in only if only else not p.optional)}


def _base(base: Config, row: Method, preset: Preset) -> Config:
    """What a row's training starts from."""
    return base if row.config == preset.config else cfg.load(row.config)


def _moved(base: Config, common: Config, row: Method, preset: Preset, everywhere: dict[str, Any]) -> Config:
    """What the user set for all trainings, upon what the row starts from."""
    was = dict(cfg.items(base))
    changed = {k: v for k, v in cfg.items(common) if v != was[k]}
    return _configure(_base(base, row, preset), Method(settings=changed | everywhere), "the command line")


def _configure(common: Config, row: Method, where: str) -> Config:
    values = cfg.to_dict(common)
    for key, value in row.settings.items():
        section = values
        *path, last = key.split(".")
        for name in path:
            section = section[name]
        section[last] = value
    return cfg.validate(cfg.from_dict(Config, values, where))


def _job(
    rows: list[str], config: Config, base: Config, seed: int, command: list[str], preset: Preset, data: Path, out: Path
) -> PlannedRun:
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
    name = f"{rows[0]}-s{seed}"
    run, output = out / "runs" / name, out / "outputs" / name
    first = preset.rows[rows[0]]
    was = dict(cfg.items(_base(base, first, preset)))
    # what makes a row is said on its line even where it is the default
    said = {"train.epochs", "train.seed"} | {key for row in rows for key in preset.rows[row].settings}
    own = {k: v for k, v in cfg.items(config) if (v != was[k] or k in said) and k != "data.shards"}
    start = [*(["--config", first.config] if first.config else []), "--data.shards", str(data), "--out", str(run)]
    unlike = dict(cfg.items(TrackConfig()))
    track = {f"track.{k}": v for k, v in cfg.items(config.track) if v != unlike[k]}
    options = preset.infer
    draw = ["--run", str(run), "--input", str(data), "--out", str(output)]
    return PlannedRun(
        name=name,
        rows=rows,
        config=config,
        run=run,
        output=output,
        train=shlex.join([*command, "train", *start, *arguments(own)]),
        infer=shlex.join([*command, "infer", *draw, *arguments(options | track)]),
        infer_options=options,
    )


def arguments(settings: dict[str, Any]) -> list[str]:
    """Dotted settings as command-line words: --data.batch-size 4, --data.no-shuffle."""
    words: list[str] = []
    for key, value in settings.items():
        key = key.replace("_", "-")
        if isinstance(value, bool):
            section, dot, last = key.rpartition(".")
            words.append(f"--{section}{dot}{'' if value else 'no-'}{last}")
        else:
            words += [f"--{key}", str(value)]
    return words


def _command(launch: str) -> list[str]:
    """`accelerate launch --config_file FILE` may leave out the module."""
    try:
        words = shlex.split(launch)
    except ValueError as e:
        raise UserError(f"--launch {launch!r}: {e}") from e
    if not words:
        raise UserError("--launch is empty: say how a line is started, as in 'accelerate launch -m dist_sketch'")
    return (
        words if any(Path(w).name in ("dist-sketch", "dist_sketch") for w in words) else [*words, "-m", "dist_sketch"]
    )


def claim_folder(plan: Plan) -> None:
    """Refuses to mix experiments in a folder.

    Raises:
        UserError: it holds something else, or runs of another configuration or of other data.
    """
    out = plan.out
    refuse_foreign(out, "an experiment's folder", PLAN)
    digest = manifest_hash(plan.data)
    for job in plan.jobs:
        if not (job.run / "config.json").exists():
            continue
        saved = read_json(job.run / "config.json")
        changes = cfg.difference(cfg.from_dict(Config, saved["config"], str(job.run / "config.json")), job.config)
        if saved["facts"]["manifest_sha256"] != digest:
            changes.append(f"--data {plan.data}: another data set (its manifest differs)")
        if changes:
            raise UserError(
                f"{job.run}: was trained with another configuration; choose another --out, or undo:\n  "
                + "\n  ".join(changes)
            )


def write(plan: Plan) -> Path:
    """Writes DIR/plan.txt."""
    write_atomic(plan.out / PLAN, plan.text())
    return plan.out / PLAN


def json_or_empty(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none yet, or no whole one."""
    with suppress(OSError, UserError):
        found = read_json(path)
        return found if isinstance(found, dict) else {}
    return {}
