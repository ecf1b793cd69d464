"""`dist-sketch submit` on the command line: checks, then sbatch."""

import shlex
from dataclasses import dataclass
from typing import Annotated

import tyro

from dist_sketch import doctor, submit
from dist_sketch.errors import UserError


def separate(arguments: list[str]) -> list[str]:
    """Puts the two dashes between our own options and the words that are not ours."""
    own = next((i for i, a in enumerate(arguments) if not a.startswith("-")), len(arguments))
    return [*arguments[:own], "--", *arguments[own:]] if arguments[own:] else arguments


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Check a job, or a chain of them, and give it to SLURM: dist-sketch submit [OPTIONS] KIND WORDS ...

    KIND is pack, train, infer or experiment. WORDS are those of `sbatch slurm/KIND.sbatch`: options of sbatch, settings
    as name=value, options of the dist-sketch command. Several jobs, each after the one before it has ended well:
    submit chain pack ... then train ... then infer ... ; a later job takes over the paths that earlier ones made.
    """

    words: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="KIND WORDS ...")]]
    """As in: train --nodes=4 --gpus-per-node=8 shards=shards/faces out=runs/faces --train.epochs 200."""
    dry_run: bool = False
    """Print sbatch's commands and the scripts, submit nothing."""
    force: bool = False
    """Submit in spite of what `dist-sketch doctor` finds."""

    def run(self) -> int:
        """Runs the command."""
        found = submit.requests(self.words)
        bad = doctor.report(found)
        if bad and not self.force and not self.dry_run:
            raise UserError(f"{bad} check(s) failed, nothing is submitted; mend that, or give --force before the kind")
        made = submit.jobs(found, write=not self.dry_run)
        if self.dry_run:
            names = [f"<{job.name}>" for job in made]
            print("\n".join(shlex.join(submit.command(job, names)) for job in made))
            for script in dict.fromkeys(request.script for request in found):
                print(f"\n----- {script}\n{script.read_text(encoding='utf-8')}", end="")
            return 2 if bad else 0
        for job, number in zip(made, submit.submit(made), strict=True):
            print(f"{job.name}: job {number}")
        return 0
