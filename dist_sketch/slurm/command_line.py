"""The commands for SLURM on the command line: doctor, submit, leg, node, logs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import find_file
from dist_sketch.core.places import Place
from dist_sketch.slurm import attempt, doctor, node_launcher, rank_logs, submit

JobArguments = tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="KIND ARGUMENTS ...")]]
RunFolder = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
CommandAfterDashes = tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="-- COMMAND ...")]]


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """Check on the login node what would make a job fail: dist-sketch doctor KIND ARGUMENTS ..., as for submit.

    Exit code 0, or 2 if a check fails. `dist-sketch submit` does these checks first.
    """

    arguments: JobArguments
    """For example: train --nodes=4 --gpus-per-node=8 shards=shards/faces out=runs/faces --train.epochs 200."""

    def run(self) -> int:
        return 2 if doctor.report(submit.read_requests(self.arguments)) else 0


@dataclass(frozen=True, kw_only=True)
class SubmitCommand:
    """Check a job, or a chain of jobs, and submit it to SLURM: dist-sketch submit [OPTIONS] KIND ARGUMENTS ...

    KIND is pack, train, infer or experiment. ARGUMENTS are those of `sbatch slurm/KIND.sbatch`: options of sbatch,
    settings as name=value, options of the dist-sketch command. In a chain each job starts after the one before it has
    succeeded, and takes the paths that earlier jobs made: submit chain pack ... then train ... then infer ...
    """

    arguments: JobArguments
    """For example: train --nodes=4 --gpus-per-node=8 shards=shards/faces out=runs/faces --train.epochs 200."""
    dry_run: bool = False
    """Print the sbatch commands and the scripts, submit nothing."""
    force: bool = False
    """Submit even if `dist-sketch doctor` finds a problem."""

    def run(self) -> int:
        requests = submit.read_requests(self.arguments)
        bad = doctor.report(requests)
        if bad and not self.force and not self.dry_run:
            raise UserError(f"{bad} check(s) failed, nothing is submitted; mend that, or give --force before the kind")
        submit.submit(submit.sbatch_calls(requests, write=not self.dry_run), dry_run=self.dry_run)
        if not self.dry_run:
            return 0
        scripts = [request.script for request in requests]
        for script in dict.fromkeys([*scripts, find_file("slurm", "common", ".sh")]):
            print(f"\n----- {script}\n{script.read_text(encoding='utf-8')}", end="")
        return 2 if bad else 0


@dataclass(frozen=True, kw_only=True)
class LegCommand:
    """Run one attempt (a leg) of a SLURM job that trains: its step, then the decision: done, requeue, or stop.

    The last command of a batch script: exec dist-sketch leg RUN -- srun ... dist-sketch node -- train ...
    """

    folder: RunFolder
    """Run folder."""
    command: CommandAfterDashes
    """The step, after two dashes."""
    then: str = ""
    """A second step for a finished run, as one line of shell words."""
    requeues: int = 20
    """How often the job may requeue itself before it stops; SLURM's own requeues do not count."""

    def run(self) -> int:
        if not self.command:
            raise UserError("leg: there is nothing to run; give the step after two dashes: -- srun ...")
        return attempt.run_attempt(self.folder, list(self.command), then=self.then, most_requeues=self.requeues)


@dataclass(frozen=True, kw_only=True)
class NodeCommand:
    """Start the ranks of one node inside a SLURM step: srun --ntasks-per-node=1 dist-sketch node -- COMMAND ..."""

    command: CommandAfterDashes
    """A command of dist-sketch with its arguments, after two dashes; each rank runs it."""
    procs: int | None = None
    """Ranks per node; default: one per GPU, or one if the job has no GPUs."""
    port: int | None = None
    """Where the ranks meet on the first node; default: 20000 + job id modulo 12000."""
    logs: Path | None = None
    """Folder for the logs of each rank and node."""
    stage: Place | None = None
    """Shards to copy first to this node's own disk ($SLURM_TMPDIR or $TMPDIR), where they are verified."""

    def run(self) -> int:
        return node_launcher.run_node(
            self.command, processes=self.procs, port=self.port, logs=self.logs, stage=self.stage
        )


@dataclass(frozen=True, kw_only=True)
class LogsCommand:
    """Show how a job's run is doing: its status, its attempts (legs), and the log of the rank that failed first."""

    folder: RunFolder
    """Run folder."""
    lines: int = 30
    """How many of the last lines of that log to show."""

    def run(self) -> int:
        if self.lines < 0:
            raise UserError(f"--lines {self.lines}: must be 0 or more")
        print(rank_logs.describe(self.folder, self.lines))
        return 0


def separate(arguments: list[str]) -> list[str]:
    """Puts two dashes before the job's arguments, so that `submit` and `doctor` do not take them for their own."""
    own = next((i for i, a in enumerate(arguments) if not a.startswith("-")), len(arguments))
    return [*arguments[:own], "--", *arguments[own:]] if arguments[own:] else arguments
