"""What is compared, as it lies on disk: training runs, and output folders of `infer`."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dist_sketch.core.config import FREE, GONE, Config, to_dict
from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json
from dist_sketch.reports.page import FLATTERED, flat
from dist_sketch.tracking.tracker import read_metrics


@dataclass(frozen=True, eq=False)
class Entry:
    """One thing that is compared."""

    path: Path  # as the user gave it
    name: str  # short, unique on the page
    kind: Literal["run", "output"]  # a training run's folder, or an output folder of `infer`
    config: dict[str, Any]  # flat: dotted key -> value, of the run
    facts: dict[str, Any]  # world_size, manifest_sha256, versions ...; {} if unknown
    records: list[dict[str, Any]]  # metrics.jsonl of the run; [] if it is gone
    scores: dict[str, Any] | None  # metrics.json of an output; None for a run
    names: list[str]  # infer.json's names
    run: Path = Path()  # the run's folder
    status: dict[str, Any] = field(default_factory=dict)  # the run's status.json
    about: dict[str, Any] = field(default_factory=dict)  # infer.json without config and names
    note: str = ""  # what is wrong with it, though it can be shown

    @property
    def done(self) -> int:
        """Updates that the run has done so far."""
        return max(int(self.status.get("step") or 0), *(r["step"] for r in self.records[-1:]), 0)

    @property
    def step(self) -> int:
        """Updates behind the generator that drew; for a run, those done so far."""
        return int(self.about.get("step") or 0) if self.kind == "output" else self.done

    @property
    def steps(self) -> int | None:
        """Updates that the run was to make; None if unknown."""
        return self.facts.get("steps") or self.status.get("steps")

    @property
    def chosen(self) -> bool:
        """Whether it was drawn with the weights that its finished run chose by their scores, whatever their step."""
        return bool(self.about.get("chosen"))

    @property
    def flattered(self) -> str:
        """Words for scores of the very pairs by which the weights were chosen; else empty."""
        return FLATTERED if self.about.get("chosen_on_these") else ""

    @property
    def seed(self) -> Any:
        """Of the run's weights, order and dropout."""
        return self.config.get("train.seed")

    @property
    def unfinished(self) -> str:
        """Words that say how far it came; empty for one that is finished, or of which nothing is known."""
        if self.kind == "output":
            short = self.steps is not None and self.step < self.steps and not self.chosen
            return f"was drawn at step {self.step:,} of {self.steps:,}" if short else ""
        state = self.status.get("state") or "without a status"
        planned = f" of {self.steps:,}" if self.steps else ""
        return "" if state == "finished" else f"is unfinished ({state}, step {self.step:,}{planned})"


def read(path: Path) -> Entry:
    """Reads a training run's folder, or an output folder of `infer`.

    Raises:
        UserError: it is neither, is not finished drawing, or one of its files is damaged.
    """
    if (path / "infer.json").is_file():
        return _output(path)
    if (path / "config.json").is_file():
        config, facts = _saved(path)
        if (path / "generator.safetensors").is_file():
            raise UserError(f"{path}: is an exported generator, which has no history; compare what it draws (infer)")
        return Entry(
            path=path,
            name=path.resolve().name,
            kind="run",
            config=config,
            facts=facts,
            records=read_metrics(path),
            scores=None,
            names=[],
            run=path.resolve(),
            status=_status(path),
        )
    why = "has neither config.json (a training run) nor infer.json (an output folder of `dist-sketch infer`)"
    raise UserError(f"{path}: {why if path.is_dir() else 'there is no such folder'}")


def _output(path: Path) -> Entry:
    about = read_json(path / "infer.json")
    if not isinstance(about, dict) or not isinstance(about.get("names"), list):
        raise UserError(f"{path}: the inference there is not finished (infer.json); run `dist-sketch infer` again")
    if not isinstance(about.get("config"), dict) or not isinstance(about.get("run"), str):
        raise UserError(f"{path / 'infer.json'}: is damaged (no run, or no config); run `dist-sketch infer` again")
    run, config = Path(about["run"]), _filled(about["config"])
    facts: dict[str, Any] = {}
    records: list[dict[str, Any]] = []
    status: dict[str, Any] = {}
    note = "has lost its run and with it its curves"
    if (run / "config.json").is_file():
        now, facts = _saved(run)
        records, status, note = read_metrics(run), _status(run), ""
        if essential(now, FREE) != essential(config, FREE):
            facts, records, status = {}, [], {}
            note = "has no curves, because another run lies in its run's folder now"
    return Entry(
        path=path,
        name=path.resolve().name,
        kind="output",
        config=config,
        facts=facts,
        records=records,
        scores=_scores(path / "metrics.json"),
        names=[str(n) for n in about["names"]],
        run=run.resolve(),
        status=status,
        about={k: v for k, v in about.items() if k not in ("config", "names")},
        note=note,
    )


def _saved(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    saved = read_json(run / "config.json")
    if not isinstance(saved, dict) or not isinstance(saved.get("config"), dict):
        raise UserError(f"{run / 'config.json'}: is not the configuration of a run")
    facts = saved.get("facts")
    return _filled(saved["config"]), facts if isinstance(facts, dict) else {}


def _filled(config: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration, flat; what its version of the program did not know yet, or alone knew, is at its default.

    As when such a run goes on: defaults do not change.
    """
    known = {k: v for k, v in flat(config) if k not in GONE or v != GONE[k]}
    return dict(flat(to_dict(Config()))) | known


def _status(run: Path) -> dict[str, Any]:
    status = read_json(run / "status.json") if (run / "status.json").is_file() else {}
    return status if isinstance(status, dict) else {}


def _scores(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    scores = read_json(path)
    try:
        parts = [scores["raw"], scores["denoised"], *(v for v in scores["baselines"].values() if v is not None)]
        good = isinstance(scores["n"], int) and isinstance(scores["settings"], dict)
        good &= all(isinstance(i["name"], str) for i in scores["images"])
        good &= all(isinstance(v, int | float | None) for part in parts for v in part.values())
    except (KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise UserError(f"{path}: is not what `dist-sketch evaluate` writes; run it on {path.parent} again")
    return scores


def entries(paths: Iterable[Path]) -> list[Entry]:
    """Reads all of them: none twice, no run whose output is there too, all with names of their own."""
    found = [read(path) for path in {path.resolve(): path for path in paths}.values()]
    drawn = {e.run for e in found if e.kind == "output"}
    kept = [e for e in found if e.kind == "output" or e.run not in drawn]
    parts = [e.path.resolve().parts for e in kept]
    for i, entry in enumerate(kept):
        depth = 1
        while sum(p[-depth:] == parts[i][-depth:] for p in parts) > 1:
            depth += 1
        kept[i] = replace(entry, name="/".join(parts[i][-depth:]))
    return kept


def essential(config: dict[str, Any], left_out: tuple[str, ...]) -> dict[str, Any]:
    """A flat configuration without the keys that begin with one of `left_out`."""
    return {k: v for k, v in config.items() if not k.startswith(left_out)}
