"""`dist-sketch experiment NAME`: a preset of trainings, run one after the other, and the page that compares them."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dist_sketch.core import config as cfg
from dist_sketch.core.config import Config
from dist_sketch.core.errors import SharedError

if TYPE_CHECKING:
    from dist_sketch.experiments.planning import Plan


@dataclass(frozen=True, kw_only=True)
class ExperimentCommand:
    """Run an experiment: the paper's tables and figures, a sweep, your own; ends with OUT/compare.html.

    OUT/plan.txt says what is run, one plain command a line. Started again, it does only what is missing. What `train`
    takes as settings (`--data.batch-size 4`) goes to all its trainings (unless the preset that the experiment names
    says the same); a row's own settings win over it.
    """

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME")]]
    """paper, portrait, sweep (launch/experiment-NAME.toml), or a .toml file of that form."""
    data: Path
    """Folder of packed shards with a train and a val split."""
    out: Path
    """Folder of the experiment: plan.txt, runs/, outputs/, logs/, compare.html."""
    epochs: int | None = None
    """Epochs of all trainings; default: the preset's. May be raised later, as `train` allows."""
    seeds: int | None = None
    """How often each training is run, with the seeds 0, 1, ...; default: the preset's."""
    only: str = ""
    """Tables and figures to run, as in table1,fig6; default: all that are not optional."""
    launch: str = "dist-sketch"
    """How a line of the plan is started, as in 'accelerate launch --config_file launch/node8.yaml -m dist_sketch'."""
    dry_run: bool = False
    """Write and print the plan, run nothing."""
    page_only: bool = False
    """Run nothing, build the page of what is there; after the plan's lines were run by other means."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    def run(self) -> int:
        """Runs the command."""
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise SharedError(
                "experiment: starts its trainings itself; call it without a launcher, and give that as --launch"
            )
        from dist_sketch.core.folders import Lock
        from dist_sketch.experiments import page as experiment_page
        from dist_sketch.experiments import planning, runner

        plan = self.plan()
        lock = Lock(self.out)
        lock.acquire()
        if self.page_only:
            return _page(experiment_page.build(plan), self.out)
        file = planning.write(plan)
        if self.dry_run:
            print(plan.text(), end="")
            return 0
        print(f"{file}: {len(plan.jobs)} training(s); started again, the same command does what is missing")
        code = runner.run(plan)
        if code == runner.STOPPED:
            return code
        _page(experiment_page.build(plan), self.out)
        return code

    def plan(self) -> "Plan":
        """Lays out what is run; writes nothing.

        Raises:
            UserError: the data or the folder cannot be used, a part is unknown, a setting is out of its range.
        """
        from dist_sketch.experiments import planning
        from dist_sketch.experiments.presets import load

        preset = load(self.name)
        plan = planning.make(
            preset,
            data=self.data,
            out=self.out,
            base=cfg.load(preset.config),
            common=self.settings,
            epochs=self.epochs,
            seeds=self.seeds,
            only=[name.strip() for name in self.only.split(",") if name.strip()],
            launch=self.launch,
        )
        planning.claim_folder(plan)
        return plan


def _page(page: Path | None, out: Path) -> int:
    print(page or f"{out}: nothing has been drawn, there is nothing to compare")
    return 0


def preset(arguments: list[str]) -> ExperimentCommand:
    """The command's defaults once the experiment is known: its trainings' settings are those of the preset it names."""
    from dist_sketch.experiments.presets import load

    given: ExperimentCommand = tyro.cli(ExperimentCommand, prog="dist-sketch experiment", args=arguments)
    return replace(given, settings=cfg.load(load(given.name).config))
