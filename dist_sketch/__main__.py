"""The command line: `dist-sketch COMMAND ...` and `python -m dist_sketch COMMAND ...`."""

import importlib
import importlib.util
import os
import re
import signal
import sys

# Until all is imported, Ctrl-C ends this process at once: Python's own answer would be a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import time
import traceback
from collections.abc import Callable
from typing import Any

if importlib.util.find_spec("fcntl") is None:  # before imports that need it, and signals that Windows does not have
    print("error: dist_sketch runs on Linux and macOS; on Windows install it in WSL", file=sys.stderr)
    sys.exit(2)

import tyro

from dist_sketch import __version__
from dist_sketch.core import launcher, streams
from dist_sketch.core.config import Config
from dist_sketch.core.config_rules import validate
from dist_sketch.core.errors import SharedError, UserError, not_utf8, refused_by_system
from dist_sketch.core.words import plain
from dist_sketch.slurm.rank_logs import redirect

if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
    signal.signal(signal.SIGINT, signal.default_int_handler)

USER, OURS = 2, 1  # exit codes
FIRST_WORD_S = 2.0  # time for the rank that knows the cause to print it before others end

# In the order in which they are used. Only the command that runs is imported, and that imports what it needs only when
# it runs, so that an answer to a typing error does not take seconds.
COMMANDS = {
    "synth": "commands.data:SynthCommand",
    "pack": "commands.data:PackCommand",
    "verify": "commands.data:VerifyCommand",
    "train": "commands.train:TrainCommand",
    "checkpoint": "commands.checkpoint:CheckpointCommand",
    "infer": "commands.infer:InferCommand",
    "merge": "commands.infer:MergeCommand",
    "evaluate": "commands.infer:EvaluateCommand",
    "report": "commands.report:ReportCommand",
    "compare": "commands.report:CompareCommand",
    "experiment": "commands.experiment:ExperimentCommand",
    "sync": "commands.sync:SyncCommand",
    "doctor": "slurm.command_line:DoctorCommand",
    "submit": "slurm.command_line:SubmitCommand",
    "leg": "slurm.command_line:LegCommand",
    "node": "slurm.command_line:NodeCommand",
    "logs": "slurm.command_line:LogsCommand",
    "weights": "commands.infer:WeightsCommand",
    "bench": "commands.bench:BenchCommand",
}


def command(name: str) -> Any:
    """The class of a command."""
    module, kind = COMMANDS[name].split(":")
    return getattr(importlib.import_module(f"dist_sketch.{module}"), kind)


def usage() -> str:
    """The help of `dist-sketch` itself: one line for each command."""
    lines = [f"  {name:12}{command(name).__doc__.strip().splitlines()[0]}" for name in COMMANDS]
    return (
        "usage: dist-sketch COMMAND [-h] ...\n\nFrom rough line drawings of faces to pencil portraits.\n\n"
        + "\n".join(lines)
        + "\n\n`dist-sketch COMMAND --help` lists the options of a command.\n"
    )


def parse(arguments: list[str]) -> Callable[[], int]:
    """Parses the command line; returns the function that runs the command.

    Raises:
        UserError: there is no such command, preset or setting. For a wrong option tyro exits with 2 by itself.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0 if arguments else USER)
    if arguments[0] == "--version":
        print(__version__)
        raise SystemExit(0)
    # A shell leaves the ~ of --out=~/faces, and of what a program passes, as it is.
    name, *rest = (re.sub(r"^((?:--)?[\w.-]+=)?(~.*)", _at_home, word, flags=re.DOTALL) for word in arguments)
    for word in (name, *rest):
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise not_utf8(word)
    if name not in COMMANDS:
        raise UserError(f"{name}: there is no such command; there are {', '.join(COMMANDS)}")
    default: Any = None
    if name == "train":
        from dist_sketch.commands import train

        rest = train.as_typed(rest)
        default = train.preset(rest)
    elif name == "experiment":
        from dist_sketch.commands import experiment

        default = experiment.preset(rest)
    elif name in ("submit", "doctor"):
        from dist_sketch.slurm.command_line import separate

        rest = separate(rest)
    parsed: Any = tyro.cli(command(name), prog=f"dist-sketch {name}", args=rest, default=default)
    if hasattr(parsed, "track"):
        validate(Config(track=parsed.track))
    run: Callable[[], int] = parsed.run
    return run


def _at_home(word: re.Match[str]) -> str:
    """A word of the command line with the home folder in place of `~`."""
    return (word[1] or "") + os.path.expanduser(word[2])


def main() -> None:
    """Runs the command line. A user's mistake gives a message and exit code 2, ours a traceback and exit code 1."""
    # Every interpreter that is started from here takes modules from the installation alone, never from the folder that
    # it is started in: that may be somebody else's.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        streams.make_tolerant()
        redirect()
        try:
            run = parse(sys.argv[1:])
        except UserError as e:  # all ranks have the same command line, so one message is enough
            raise SharedError(str(e)) from e
        code = run()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # another one ends this process at once
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception as e:
        code = _explain(refused_by_system(e) or e, launcher.rank())
    _ranks().leave(code) if _ranks() else sys.exit(code)


def _ranks() -> Any:
    """The module `core.ranks` if a command has imported it (and torch with it), else None."""
    return sys.modules.get("dist_sketch.core.ranks")


def _explain(error: Exception, rank: int) -> int:
    """Prints what went wrong, once for all ranks; returns the exit code."""
    who = f" (rank {rank})" if rank else ""
    if isinstance(error, SharedError) and rank:
        time.sleep(FIRST_WORD_S)  # a launcher ends all ranks as soon as one has ended, so rank 0 must print first
        return USER
    if isinstance(error, UserError):
        print(f"error{who}: {plain(str(error))}", file=sys.stderr)
        code = USER
    elif _ranks() and (lost := _ranks().lost_peer(error)):
        time.sleep(FIRST_WORD_S)
        print(f"error{who}: {lost}", file=sys.stderr)
        return OURS
    else:
        traceback.print_exc()
        print(f"This is a fault of dist_sketch{who}, not of your input.", file=sys.stderr)
        code = OURS
    if "TORCHELASTIC_ERROR_FILE" in os.environ and not isinstance(error, SharedError):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)  # so that the launcher names the rank that failed first
    return code


if __name__ == "__main__":
    main()
