"""`dist-sketch experiment NAME`: runs the trainings of a preset one after the other and compares them on a page."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from dist_sketch.commands.infer import InferCommand
from dist_sketch.core import config as cfg
from dist_sketch.core import launcher
from dist_sketch.core.config import Config
from dist_sketch.core.errors import SharedError, UserError
from dist_sketch.core.folders import Lock
from dist_sketch.core.places import Place
from dist_sketch.experiments import planning, presets, runner


@dataclass(frozen=True, kw_only=True)
class ExperimentCommand:
    """Run an experiment: the paper's tables and figures, a sweep, or your own; the result is OUT/compare.html.

    OUT/plan.txt lists what is run, as one plain command on each line. If the command is started again, it does only
    what is missing. The settings of `train` (`--data.batch-size 4`) apply to all trainings of the experiment, but the
    settings of a row have priority over them.
    """

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME")]]
    """paper, portrait, sweep (launch/experiment-NAME.toml), or a .toml file of that form."""
    data: Place
    """Folder or address of packed shards with a train and a val split."""
    out: Path
    """Folder of the experiment: plan.txt, runs/, outputs/, logs/, compare.html."""
    epochs: int | None = None
    """Epochs of all trainings; default: those of the trainings in --out, or else the preset's. May be raised later."""
    seeds: int | None = None
    """Number of runs of each training, with the seeds 0, 1, ...; default: the preset's."""
    only: str = ""
    """Tables and figures to run, for example table1,fig6; default: all that are not optional."""
    launch: str = "dist-sketch"
    """How a line of the plan is started, as in 'accelerate launch --config_file launch/node8.yaml -m dist_sketch'."""
    dry_run: bool = False
    """Write and print the plan, but run nothing."""
    page_only: bool = False
    """Run nothing, but build the page from what is there, if the plan's lines were run by other means."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    def run(self) -> int:
        if launcher.number("WORLD_SIZE") > 1:
            raise SharedError(
                "experiment: starts its trainings itself; call it without a launcher, and name the launcher in --launch"
            )
        if self.dry_run and self.page_only:
            raise UserError("--dry-run shows what is run, and --page-only runs nothing: give one of them")
        plan = self.plan()
        with Lock(self.out) as lock:
            lock.acquire()
            planning.claim_folder(plan)  # another experiment may have begun there in the meantime
            return self.do(plan)

    def do(self, plan: planning.Plan) -> int:
        """Runs the plan and builds its page."""
        code = 0
        if not self.page_only:
            file = planning.write(plan)
            if self.dry_run:
                print(plan.text(), end="")
                return 0
            print(f"{file}: {len(plan.runs)} training(s); if started again, the same command does what is missing")
            code = runner.run(plan)
            if code == runner.STOPPED:
                return code
        from dist_sketch.experiments import page

        print(page.build(plan) or f"{self.out}: nothing has been drawn, so there is nothing to compare")
        return code

    def plan(self) -> planning.Plan:
        """Lays out what is run; writes nothing.

        Raises:
            UserError: the data or the folder cannot be used, a part is unknown, or a setting is out of its range.
        """
        plan = planning.make(
            presets.load(self.name),
            data=self.data,
            out=self.out,
            common=self.settings,
            epochs=self.epochs,
            seeds=self.seeds,
            only=[name.strip() for name in self.only.split(",") if name.strip()],
            launch=self.launch,
        )
        check_infer(plan.preset)
        planning.claim_folder(plan)
        if not self.page_only:
            planning.check_data(plan)
        return plan


def check_infer(preset: presets.Preset) -> None:
    """Refuses options that `dist-sketch infer` does not take: it would say so only after the first training.

    Raises:
        UserError: names the options; tyro has printed what is wrong with them.
    """
    where = f"{preset.name}: [infer]"
    own = ("run", "input", "out", "part", "scores", "no-scores", "h", "help")
    for key in preset.infer:
        if key.replace("_", "-") in own:
            raise UserError(f"{where}: {key} is set by the experiment itself, for each run; leave it out")
    words = planning.infer_arguments(preset.infer)
    try:
        tyro.cli(InferCommand, prog="dist-sketch infer", args=["--run", "x", "--input", "x", "--out", "x", *words])
    except SystemExit as e:
        raise UserError(f"{where}: `dist-sketch infer` does not accept {' '.join(words)}: see above") from e


def preset(arguments: list[str]) -> ExperimentCommand:
    """The command's defaults: the settings of its trainings are those of the configuration that the preset names."""
    given: ExperimentCommand = tyro.cli(ExperimentCommand, prog="dist-sketch experiment", args=arguments)
    return replace(given, settings=cfg.load(presets.load(given.name).config))
