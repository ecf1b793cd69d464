"""From a preset to a plan: one plain command on each line, and whether it has been done."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config, TrackConfig
from dist_sketch.core.config_rules import difference, validate
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import SMALL, read_regular, write_atomic
from dist_sketch.core.folders import refuse_file_name, refuse_foreign
from dist_sketch.core.places import Place
from dist_sketch.core.saved import config_of, read_infer, read_settings, read_status, sealed_weights
from dist_sketch.data.manifest import manifest_hash, read_manifest
from dist_sketch.experiments.presets import MOST_TRAININGS, Claim, Exhibit, Preset, nested
from dist_sketch.reports.ours import refuse_others

PLAN, PAGE, RUNS = "plan.txt", "compare.html", "runs"
MARK = "# Each line is a command that can also be typed by hand, in this folder:"


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A training, and the inference with its weights."""

    name: str  # of its first row, with the seed
    rows: list[str]  # that share it
    config: Config
    folder: Path  # of the training
    output: Path  # of the inference
    train: str  # command lines
    infer: str
    infer_options: dict[str, Any]

    def trained(self) -> bool:
        """Whether the run has finished all its epochs."""
        status = read_status(self.folder)
        return status.get("state") == "finished" and status.get("epochs", 0) >= self.config.train.epochs

    def drawn(self) -> bool:
        """Whether the output was drawn and scored with the weights that the run selected, and with these options."""
        if not self.trained():
            return False
        status, infer = read_status(self.folder), read_infer(self.output)
        step = status.get("draws", status.get("step"))
        if infer.get("step") != step or not (self.output / "metrics.json").is_file():
            return False
        weights = sealed_weights(self.folder / "checkpoints" / f"step-{step or 0:08d}")
        if weights is not None and weights != infer.get("weights_sha256"):
            return False
        mode = infer.get("mode") or {}
        used = {**infer, **mode, "mode": mode.get("statistics")}
        used |= {f"denoise.{k}": v for k, v in (infer.get("denoise") or {}).items()}
        return all(used.get(k.replace("-", "_"), v) == v for k, v in self.infer_options.items())


class PlanLine(NamedTuple):
    """A line of the plan: the training or the inference of a planned run."""

    name: str  # in messages, and of the log file
    run: PlannedRun
    kind: Literal["train", "infer"]
    command: str
    done: Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an experiment runs, and what its page shows."""

    preset: Preset
    data: Place
    out: Path
    seeds: int
    parts: dict[str, Exhibit]
    claims: list[Claim]
    split: str  # whose pairs are drawn and scored
    runs: list[PlannedRun]  # all with seed 0, then with seed 1, ...

    @property
    def lines(self) -> list[PlanLine]:
        """All lines in order: each training is followed by its inference."""
        lines = []
        for run in self.runs:
            lines.append(PlanLine(f"{run.name}-train", run, "train", run.train, run.trained))
            lines.append(PlanLine(f"{run.name}-infer", run, "infer", run.infer, run.drawn))
        return lines

    def run_of(self, row: str, seed: int) -> PlannedRun:
        """The planned run of a row, which other rows may share."""
        return next(r for r in self.runs if row in r.rows and r.config.train.seed == seed)

    def text(self) -> str:
        """The content of the plan file."""
        lines = [
            f"# {self.preset.title}: {', '.join(self.parts)}; {self.seeds} seed(s), {len(self.runs)} training(s)",
            MARK,
            f"# {Path.cwd()}",
            "# A training must precede its inference. When the experiment is started again, it skips finished lines.",
        ]
        for run in self.runs:
            shown = [f"{p}: {self.preset.rows[r].label}" for p, part in self.parts.items() for r in part.rows
                     if r in run.rows]  # fmt: skip
            lines += ["", f"# {run.name} ({'; '.join(shown)})", run.train, run.infer]
        return "\n".join(lines) + "\n"


def make(
    preset: Preset,
    *,
    data: Place,
    out: Path,
    common: Config,
    seeds: int | None = None,
    epochs: int | None = None,
    only: Sequence[str] = (),
    launch: str = "dist-sketch",
) -> Plan:
    """Lays out the plan; writes nothing.

    Args:
        common: the configuration of `preset.config` with the user's changes. The changes apply to all trainings, also
            to those of another configuration; but a row's own settings win over them.
        epochs: of all trainings; default: those of the trainings that are there, else what their configurations say.
        only: names of parts; default: all but the optional ones.
        launch: how a line is started, instead of by `dist-sketch`.

    Raises:
        UserError: the data cannot be used, a part is unknown, or a setting is out of its range.
    """
    unknown = [name for name in only if name not in preset.parts]
    if unknown:
        raise UserError(f"--only: there is no {unknown[0]!r} in {preset.name}; there are {', '.join(preset.parts)}")
    parts = {n: p for n, p in preset.parts.items() if (n in only if only else not p.optional)}
    seeds = preset.seeds if seeds is None else seeds
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be at least 1")
    splits = [name for name, s in read_manifest(data)["splits"].items() if s["has_sketch"] and s["count"]]
    for needed in ("train", "val"):
        if needed not in splits:
            raise UserError(f"{data}: has no {needed} split with sketches; an experiment needs train and val")
    # Weights may be chosen by their scores on val, so test is the better judge.
    split = str(preset.infer.get("split", "test" if "test" in splits else "val"))
    start = dict(cfg.items(cfg.load(preset.config)))
    changes = {k: v for k, v in cfg.items(common) if v != start[k]}
    if "data.shards" in changes or "train.seed" in changes:
        raise UserError("--data.shards and --train.seed are set by the experiment itself: use --data and --seeds")
    changes |= {"track.group": common.track.group or preset.name}
    changes |= {} if epochs is None else {"train.epochs": epochs}
    configs: dict[str, Config] = {}
    sharing: dict[str, list[str]] = {}  # a configuration -> the rows that have it
    for name, row in preset.rows.items():
        config = _change(cfg.load(row.config), changes, "the command line")
        configs[name] = _change(config, row.settings, f"rows.{name}")
        sharing.setdefault(json.dumps(cfg.to_dict(configs[name])), []).append(name)
    wanted = {row for part in parts.values() for row in part.rows}
    trained = [rows for rows in sharing.values() if wanted.intersection(rows)]
    if len(trained) * seeds > MOST_TRAININGS:
        raise UserError(
            f"{len(trained)} setting(s) with {seeds} seed(s) each: an experiment has at most {MOST_TRAININGS:,} "
            "trainings; choose fewer --seeds, or some of its parts by --only"
        )
    trained_rows = {row for rows in trained for row in rows}
    words = _launch_words(launch)
    # The first row of the file gives a run its name, so that the name does not depend on --only.
    lengths = _epochs_there(out) if epochs is None and "train.epochs" not in changes else {}
    infer = preset.infer if split == "val" else {"split": split} | preset.infer
    runs = []
    for seed in range(seeds):
        for rows in trained:
            config, name = configs[rows[0]], f"{rows[0]}-s{seed}"
            # A new training is as long as those that are there, if these have one length, unless its row says its own.
            common_length = set() if "train.epochs" in preset.rows[rows[0]].settings else set(lengths.values())
            length = common_length.pop() if len(common_length) == 1 else config.train.epochs
            config = replace(config, train=replace(config.train, seed=seed, epochs=lengths.get(name, length)))
            runs.append(_planned_run(preset, rows, name, config, words, data, out, infer))
    claims = [c for c in preset.claims if trained_rows.issuperset(c.rows)]
    return Plan(preset=preset, data=data, out=out, seeds=seeds, parts=parts, claims=claims, split=split, runs=runs)


def _epochs_there(out: Path) -> dict[str, int]:
    """The epochs of the trainings that lie there, by their names: without --epochs none of them gets longer."""
    folders = (file.parent for file in sorted((out / RUNS).glob("*/config.json")))
    return {folder.name: config_of(read_settings(folder), folder).train.epochs for folder in folders}


def _change(config: Config, settings: dict[str, Any], where: str) -> Config:
    """The configuration with some settings changed, checked."""
    return validate(cfg.from_dict(Config, nested((dict(cfg.items(config)) | settings).items(), where), where))


def _planned_run(
    preset: Preset,
    rows: list[str],
    name: str,
    config: Config,
    launch: list[str],
    data: Place,
    out: Path,
    infer_options: dict[str, Any],
) -> PlannedRun:
    first, folder, output = preset.rows[rows[0]], out / RUNS / name, out / "outputs" / name
    start = dict(cfg.items(cfg.load(first.config)))
    # The settings that make a row appear on its line even if they are the default.
    always = {"train.epochs", "train.seed"} | {key for row in rows for key in preset.rows[row].settings}
    own = {k: v for k, v in cfg.items(config) if (v != start[k] or k in always) and k != "data.shards"}
    preset_option = ["--config", first.config] if first.config else []
    train = [*preset_option, "--data.shards", str(data), "--out", str(folder), *arguments(own)]
    untracked = dict(cfg.items(TrackConfig()))
    track = {f"track.{k}": v for k, v in cfg.items(config.track) if v != untracked[k]}
    infer = ["--run", str(folder), "--input", str(data), "--out", str(output), *infer_arguments(infer_options | track)]
    return PlannedRun(
        name=name,
        rows=rows,
        config=config,
        folder=folder,
        output=output,
        train=shlex.join([*launch, "train", *train]),
        infer=shlex.join([*launch, "infer", *infer]),
        infer_options=infer_options,
    )


def arguments(settings: dict[str, Any]) -> list[str]:
    """Dotted settings as command-line arguments: --data.batch-size 4, --data.no-shuffle."""
    words: list[str] = []
    for key, value in settings.items():
        key = key.replace("_", "-")
        if isinstance(value, bool):
            section, dot, last = key.rpartition(".")
            words.append(f"--{section}{dot}{'' if value else 'no-'}{last}")
        else:
            words += [f"--{key}", str(value)]
    return words


def infer_arguments(settings: dict[str, Any]) -> list[str]:
    """Options of `infer` as arguments. Those of `denoise` take true and false as words: without, the run's count."""
    return arguments({k: str(v) if k.startswith("denoise.") else v for k, v in settings.items()})


def _launch_words(launch: str) -> list[str]:
    """The words before `train` or `infer`; the user may leave out `-m dist_sketch`."""
    try:
        words = shlex.split(launch)
    except ValueError as e:
        raise UserError(f"--launch {launch!r}: {e}") from e
    if not words:
        raise UserError("--launch is empty: say how a line is started, as in 'accelerate launch -m dist_sketch'")
    complete = any(Path(w).name in ("dist-sketch", "dist_sketch") for w in words)
    return words if complete else [*words, "-m", "dist_sketch"]


def claim_folder(plan: Plan) -> None:
    """Refuses to mix experiments in a folder.

    Raises:
        UserError: the folder holds something else, or runs of another configuration or of other data.
    """
    refuse_file_name(plan.out, "--out is the folder for all runs and their page")
    refuse_foreign(plan.out, "an experiment's folder", PLAN)
    file = plan.out / PLAN
    try:
        foreign = file.exists() and MARK.encode() not in read_regular(file, SMALL)
    except OSError:  # it is no regular file, or too large
        foreign = True
    if foreign:
        raise UserError(f"{file}: is not a plan of dist_sketch, and would be overwritten; choose another --out")
    refuse_others(plan.out / PAGE)
    digest = manifest_hash(plan.data)
    for planned in plan.runs:
        file = planned.folder / "config.json"
        if not file.exists():
            continue
        saved = read_settings(planned.folder)
        changes = difference(config_of(saved, planned.folder), planned.config)
        if (saved.get("facts") or {}).get("manifest_sha256") != digest:
            changes.append(f"--data {plan.data}: another data set (its manifest differs)")
        if changes:
            raise UserError(
                f"{planned.folder}: was trained with another configuration; choose another --out, or undo:\n  "
                + "\n  ".join(changes)
            )


def check_data(plan: Plan) -> None:
    """Checks that one process can train on the data with the settings of each row, as `train` itself does at its start.

    Raises:
        UserError: it cannot; the message names the row.
    """
    from dist_sketch.data.selection import chosen, refuse_none
    from dist_sketch.data.shards import Shards
    from dist_sketch.training import setup  # imports torch

    packed = Shards(plan.data, "train")
    # Trainings that agree in these settings are checked once.
    kinds = {(c.data, c.train.accumulate, c.norm, c.generator): run for run in reversed(plan.runs) if (c := run.config)}
    for run in reversed(kinds.values()):
        try:
            shards = chosen(packed, run.config.data.where)
            refuse_none(shards, packed, run.config.data.where)
            setup.check(run.config, shards, world_size=1)
        except UserError as e:
            raise UserError(f"{plan.preset.name}: rows.{run.rows[0]}: {e}") from e


def write(plan: Plan) -> Path:
    """Writes DIR/plan.txt."""
    write_atomic(plan.out / PLAN, plan.text())
    return plan.out / PLAN
