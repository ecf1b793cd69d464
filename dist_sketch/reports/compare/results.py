"""Reads what is compared: folders of training runs, and output folders of `infer`."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dist_sketch.core.config import REMOVED, Config, to_dict
from dist_sketch.core.config_rules import FREE
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import flat
from dist_sketch.core.saved import read_finished_infer, read_scores, read_settings, read_status
from dist_sketch.tracking.tracker import read_metrics


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """A training run, or the drawings of one."""

    path: Path  # as the user gave it
    name: str  # short, unique on the page
    kind: Literal["run", "output"]  # a training run's folder, or an output folder of `infer`
    run: Path  # the run's folder
    config: dict[str, Any]  # the run's, as dotted key -> value
    facts: dict[str, Any] = field(default_factory=dict)  # world_size, manifest_sha256 ...; {} if unknown
    records: list[dict[str, Any]] = field(default_factory=list)  # the run's metrics.jsonl; [] if it is gone
    status: dict[str, Any] = field(default_factory=dict)  # the run's status.json; {} if it is gone
    scores: dict[str, Any] | None = None  # an output's metrics.json
    infer: dict[str, Any] = field(default_factory=dict)  # an output's infer.json, without config and names
    names: list[str] = field(default_factory=list)  # of an output's pictures
    no_curves: str = ""  # a predicate that says why the run's records are missing

    @property
    def seed(self) -> Any:
        """The run's seed."""
        return self.config["train.seed"]

    @property
    def steps_done(self) -> int:
        """Updates that the run has done so far."""
        return max(int(self.status.get("step") or 0), *(r["step"] for r in self.records[-1:]), 0)

    @property
    def step(self) -> int:
        """Updates of the generator that drew; for a run, those done so far."""
        return int(self.infer.get("step") or 0) if self.kind == "output" else self.steps_done

    @property
    def steps(self) -> int | None:
        """Updates that the run was planned to do; None if unknown."""
        return self.facts.get("steps") or self.status.get("steps")

    @property
    def unfinished(self) -> str:
        """A predicate that says how far training has come; empty if it is finished, or if nothing is known of it."""
        if self.kind == "output":  # weights that the finished run selected may be of any step
            early = self.steps is not None and self.step < self.steps and not self.infer.get("chosen")
            return f"was drawn at step {self.step:,} of {self.steps:,}" if early else ""
        state = self.status.get("state") or "without a status"
        planned = f" of {self.steps:,}" if self.steps else ""
        if state == "finished" and self.steps_done >= (self.steps or 0):  # a run that grows has more steps to do
            return ""
        return f"is unfinished ({state}, step {self.step:,}{planned})"

    @property
    def unvalidated(self) -> str:
        """A predicate that says why a run has no scores of its own validation; empty if it has."""
        if self.kind == "output" or not any("seen/ssim" in r for r in self.records if r["kind"] == "val"):
            return ""
        return "was scored only on pairs that it trained on, because it had no validation pairs"


def read(path: Path) -> Result:
    """Reads the folder of a training run, or an output folder of `infer`.

    Raises:
        UserError: the folder is neither, its inference is not finished, or one of its files is damaged.
    """
    if (path / "infer.json").is_file():
        return _read_output(path)
    if not (path / "config.json").is_file():
        why = "has neither config.json (a training run) nor infer.json (an output folder of `dist-sketch infer`)"
        raise UserError(f"{path}: {why if path.is_dir() else 'there is no such folder'}")
    history = _history(path)
    if (path / "generator.safetensors").is_file():
        raise UserError(f"{path}: is an exported generator, which has no history; compare what it draws (infer)")
    return Result(path=path, name=path.resolve().name, kind="run", run=path.resolve(), **history)


def _read_output(path: Path) -> Result:
    infer = read_finished_infer(path, "run", "config")
    run, config = Path(infer["run"]), _with_defaults(infer["config"])
    history: dict[str, Any] = {"no_curves": "has no curves, because the folder of its run is gone"}
    if (run / "config.json").is_file():
        history = _history(run)
        if not same_run(history["config"], config):
            history = {"no_curves": "has no curves, because the folder of its run now holds another run"}
    return Result(
        path=path,
        name=path.resolve().name,
        kind="output",
        run=run.resolve(),
        scores=read_scores(path),
        infer={k: v for k, v in infer.items() if k not in ("config", "names")},
        names=infer["names"],
        **history | {"config": config},
    )


def _history(run: Path) -> dict[str, Any]:
    """The fields of a Result that come from the folder of its run."""
    saved = read_settings(run)
    return {
        "config": _with_defaults(saved["config"]),
        "facts": saved.get("facts") or {},
        "records": read_metrics(run),
        "status": read_status(run),
    }


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration as dotted key -> value.

    A setting that did not exist yet gets its default, and removed ones are left out, as when such a run is resumed.
    """
    known = {k: v for k, v in flat(config) if k not in REMOVED or v != REMOVED[k]}
    return dict(flat(to_dict(Config()))) | known


def same_run(config: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two saved configurations are those of one run, which may have gone on, or been moved, in between."""
    mine, others = (without(_with_defaults(saved), FREE) for saved in (config, other))
    return mine == others


def read_all(paths: Iterable[Path]) -> list[Result]:
    """Reads each folder once and gives each result a name of its own.

    An output takes the place of its run if that is compared, too: the others are compared with the first.
    """
    found = [read(path) for path in {path.resolve(): path for path in paths}.values()]
    drawn = {r.run for r in found if r.kind == "output"}
    runs = {r.run: i for i, r in enumerate(found) if r.kind == "run"}
    placed = sorted(enumerate(found), key=lambda place: min(place[0], runs.get(place[1].run, place[0])))
    kept = [r for _, r in placed if r.kind == "output" or r.run not in drawn]
    parts = [r.path.resolve().parts for r in kept]
    # How many paths end alike: each name begins as late in its path as it can.
    counts = Counter(p[-depth:] for p in parts for depth in range(1, len(p) + 1))
    for i, (result, path) in enumerate(zip(kept, parts, strict=True)):
        depth = next(d for d in range(1, len(path) + 1) if counts[path[-d:]] == 1)
        kept[i] = replace(result, name="/".join(path[-depth:]))
    return kept


def without(config: dict[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    """The settings whose dotted keys do not begin with one of `prefixes`."""
    return {k: v for k, v in config.items() if not k.startswith(prefixes)}
