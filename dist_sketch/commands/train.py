"""`dist-sketch train`."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from dist_sketch.core.config import Config, items, load
from dist_sketch.core.errors import UserError
from dist_sketch.core.signals import STOP_SIGNALS, StopRequest, before_job_end

MOST_STEPS = 10**6  # of a dry run


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a run, or continue the one in --out.

    One process by itself; several with `accelerate launch ... -m dist_sketch train ...`. A run that is asked to stop
    (SIGTERM, SIGUSR2, SIGHUP, Ctrl-C) saves itself and ends with exit code 75; the same command continues it.
    """

    out: Path
    """Run folder; an unfinished run there is continued."""
    config: str | None = None
    """Preset (a name in launch/) or TOML file; options on the command line override it."""
    dry_run: bool = False
    """Resolve, check and print everything, write nothing."""
    dry_run_steps: int = 0
    """A dry run that also makes so many steps, in memory, and tells the time that the run will take."""
    expect_world_size: int | None = None
    """Refuse to start on another number of processes; default: the number that the launcher and SLURM report."""
    stop_before_end_s: float = 120.0
    """In a SLURM job: save and stop this long before its end, at most a quarter of the time left at the start."""
    grow: tyro.conf.Suppress[bool] = True
    """Whether --train.epochs is on the command line; only then a finished run gets longer."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    def run(self) -> int:
        if not 0 <= self.dry_run_steps <= MOST_STEPS:
            raise UserError(f"--dry-run-steps {self.dry_run_steps}: must be from 0 to {MOST_STEPS:,}; 20 are enough")
        stop = StopRequest(ask_at=before_job_end(self.stop_before_end_s))
        stop.listen(*STOP_SIGNALS)  # before torch's long import
        from dist_sketch.training import loop

        return loop.train(
            self.settings,
            self.out,
            expect_world_size=self.expect_world_size,
            dry_run=self.dry_run or self.dry_run_steps > 0,
            dry_run_steps=self.dry_run_steps,
            grow=self.grow,
            stop=stop,
            page=write_page,
        )


def write_page(run: Path, status: dict[str, Any] | None) -> Path:
    """Writes RUN/index.html, the page on which people watch a run."""
    from dist_sketch.reports import live  # matplotlib takes half a second to import, and a start need not wait for it

    return live.build(run, status)


def preset(arguments: list[str]) -> TrainCommand:
    """The defaults that --config gives, which are needed before the other options can be parsed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", nargs="?")
    name = parser.parse_known_args(arguments)[0].config
    grow = any(word.split("=")[0] == "--train.epochs" for word in arguments)
    return TrainCommand(out=tyro.MISSING, config=name, grow=grow, settings=load(name))


def as_typed(words: Sequence[str]) -> list[str]:
    """A command line in which values are as the options' types ask for, where a W&B agent types them as Python does.

    `--data.flip=True` becomes `--data.flip`, and `--data.batch_size=4.0` becomes `--data.batch_size=4`.
    """
    types: dict[str, Any] = get_type_hints(TrainCommand) | {key: type(value) for key, value in items(Config())}
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        kind = types.get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") and equals else None
        if kind is bool and value.lower() in ("true", "false"):
            part, dot, setting = name.removeprefix("--").rpartition(".")
            word = f"--{part}{dot}{'' if value.lower() == 'true' else 'no-'}{setting}"
        elif kind in (int, int | None) and re.fullmatch(r"-?\d+\.0+", value):
            word = f"{name}={value.partition('.')[0]}"
        found.append(word)
    return found
