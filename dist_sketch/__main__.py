"""The command line: `dist-sketch COMMAND ...` and `python -m dist_sketch COMMAND ...`."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from dist_sketch import __version__, logs
from dist_sketch.bench import Bench
from dist_sketch.checkpoint_cli import Checkpoint
from dist_sketch.compare_cli import Compare
from dist_sketch.config import Track
from dist_sketch.doctor import Doctor
from dist_sketch.errors import SharedError, UserError
from dist_sketch.experiment import Experiment, preset
from dist_sketch.leg import Leg
from dist_sketch.logs import Logs
from dist_sketch.node import Node
from dist_sketch.pack_cli import Pack, Verify
from dist_sketch.submit_cli import Submit, separate
from dist_sketch.sync import Sync
from dist_sketch.train_cli import Train
from dist_sketch.train_cli import preset as train_preset
from dist_sketch.wandb_log import is_off

USER, OURS = 2, 1  # exit codes
FIRST_WORD_S = 2.0  # that the rank that failed has to say why


@dataclass(frozen=True, kw_only=True)
class Synth:
    """Draw procedural portraits: DIR/{train,val}_{line,sketch}/N.jpg, the same for the same seed."""

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]]
    """Where the pairs go."""
    count: int = 64
    """Training pairs."""
    val: int = 16
    """Validation pairs more."""
    size: int = 256
    """Width and height, px."""
    seed: int = 0
    """Another seed draws other people."""
    workers: int | None = None
    """Processes; default: one a core."""

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch import synth

        synth.write(self.folder, count=self.count, val=self.val, size=self.size, seed=self.seed, workers=self.workers)
        print(f"{self.folder}: {self.count} training and {self.val} validation pairs at {self.size} px")
        return 0


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Say where FID's Inception weights are; fetch them if they are nowhere; check them."""

    fid_weights: Path | None = None
    """A file of them."""

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch import inception

        weights = inception.fetch(self.fid_weights)
        print(f"{weights.path}\nsource: {weights.source}\nsha256: {weights.sha256}")
        return 0


def _infer() -> Any:
    from dist_sketch.infer import Options

    @dataclass(frozen=True, kw_only=True)
    class Infer:
        """Draw sketches: OUT/raw and, with the noise removed, OUT/sketch; scores where the input has sketches.

        One process as it stands; several with `accelerate launch ... -m dist_sketch infer ...`.
        """

        run_folder: Annotated[Path, tyro.conf.arg(name="run")]
        """Run folder, or an exported generator's; it is never written to."""
        input: Path
        """Shards, a folder of images (with or without splits and sketches), or one image."""
        out: Path
        """Output folder."""
        options: Annotated[Options, tyro.conf.arg(name="")] = field(default_factory=Options)
        track: Track = field(default_factory=Track)

        def run(self) -> int:
            """Runs the command."""
            from dist_sketch import infer

            began = time.monotonic()
            result = infer.infer(self.run_folder, self.input, self.out, self.options)
            if self.options.part:
                return 0  # the scores come with `merge`
            _track(self.out, self.track, seconds=time.monotonic() - began)
            return _show(result, self.out)

    return Infer


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Make one output folder of parts that jobs of their own drew (`infer --part K/N`), with the scores of all."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Output folder of all the parts."""
    track: Track = field(default_factory=Track)

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch import infer

        result = infer.merge(self.out)
        _track(self.out, self.track)
        return _show(result, self.out)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score an output folder's files against its real sketches again: OUT/metrics.json."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Output folder of `dist-sketch infer`."""
    fid_weights: Path | None = None
    """File of FID's Inception weights; default: wherever `dist-sketch weights` finds them."""
    track: Track = field(default_factory=Track)

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch import infer

        result = infer.evaluate(self.out, self.fid_weights)
        _track(self.out, self.track, again=True)
        return _show(result, self.out)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write OUT/report.html: scores, curves, faces, on one self-contained page."""

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """Output folder of `dist-sketch infer`."""

    def run(self) -> int:
        """Runs the command."""
        from dist_sketch import report
        from dist_sketch.fileio import read_json

        page = report.build(self.out)
        scores = self.out / "metrics.json"
        _show(read_json(scores) if scores.is_file() else None, self.out)
        print(page)
        return 0


def _track(out: Path, track: Track, **more: Any) -> None:
    """Logs an output folder to W&B, on the first rank alone."""
    if os.environ.get("RANK", "0") == "0" and not is_off(track):
        from dist_sketch import tracked

        tracked.drawn(out, track, **more)


def _show(result: dict[str, Any] | None, out: Path) -> int:
    """Prints the scores, on the first rank alone."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    if result is None:
        print(f"{out}: drawn; the input has no sketches to score them against")
        return 0
    from rich.console import Console

    from dist_sketch import metrics

    Console().print(metrics.table(result))
    print(out / "metrics.json")
    return 0


# In the order of the work. A function is called only when its command is: it imports what `--help` need not.
COMMANDS: dict[str, Any] = {
    "synth": Synth,
    "pack": Pack,
    "verify": Verify,
    "train": Train,
    "checkpoint": Checkpoint,
    "infer": _infer,
    "merge": Merge,
    "evaluate": Evaluate,
    "report": Report,
    "compare": Compare,
    "experiment": Experiment,
    "sync": Sync,
    "doctor": Doctor,
    "submit": Submit,
    "leg": Leg,
    "node": Node,
    "logs": Logs,
    "weights": Weights,
    "bench": Bench,
}


def usage() -> str:
    """The help of `dist-sketch` itself: a line a command."""
    about = {n: (_INFER if c is _infer else c.__doc__).strip().splitlines()[0] for n, c in COMMANDS.items()}
    lines = [f"  {name:12}{text}" for name, text in about.items()]
    return (
        "usage: dist-sketch COMMAND [-h] ...\n\nFrom rough line drawings of faces to pencil portraits.\n\n"
        + "\n".join(lines)
        + "\n\n`dist-sketch COMMAND --help` tells each command's options.\n"
    )


_INFER = "Draw sketches with a trained generator, remove their noise, score them."


def parse(arguments: list[str]) -> Callable[[], int]:
    """The command line as something to run.

    Raises:
        UserError: there is no such command, preset or setting. For a wrong option tyro itself exits with 2.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0 if arguments else USER)
    if arguments[0] == "--version":
        print(__version__)
        raise SystemExit(0)
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"{name}: there is no such command; there are {', '.join(COMMANDS)}")
    if name in ("submit", "doctor"):
        rest = separate(rest)
    command: Any = COMMANDS[name]() if name == "infer" else COMMANDS[name]
    default: Any = train_preset(rest) if name == "train" else preset(rest) if name == "experiment" else None
    parsed: Any = tyro.cli(command, prog=f"dist-sketch {name}", args=rest, default=default)
    run: Callable[[], int] = parsed.run
    return run


def main() -> None:
    """Runs the command line; a user's mistake is a sentence and exit code 2, ours a traceback and exit code 1."""
    logs.redirect()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's advice against what `ranks` needs
    try:
        code = _parse_alike(sys.argv[1:])()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception as e:
        code = _explain(e, int(os.environ.get("RANK", "0")))
    sys.exit(code)


def _parse_alike(arguments: list[str]) -> Callable[[], int]:
    try:
        return parse(arguments)
    except UserError as e:  # all ranks have the same command line
        raise SharedError(str(e)) from e


def _explain(error: Exception, rank: int) -> int:
    """Prints what went wrong, once over all ranks; returns the exit code."""
    who = f" (rank {rank})" if rank else ""
    if isinstance(error, SharedError) and rank:
        return USER
    if isinstance(error, UserError):
        print(f"error{who}: {error}", file=sys.stderr)
        code = USER
    elif _lost_peer(error):
        time.sleep(FIRST_WORD_S)
        print(f"error{who}: another rank failed or is gone: its message says why", file=sys.stderr)
        return OURS
    else:
        traceback.print_exc()
        print(f"This is a fault of dist_sketch{who}, not of your input.", file=sys.stderr)
        code = OURS
    if "TORCHELASTIC_ERROR_FILE" in os.environ and not isinstance(error, SharedError):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)  # the launcher's last words name the rank that failed first
    return code


def _lost_peer(error: Exception) -> bool:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    from dist_sketch.ranks import lost_peer

    return lost_peer(error)


if __name__ == "__main__":
    main()
