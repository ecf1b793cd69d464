"""Runs the lines of a plan that are not done yet, one after the other, and stops cleanly when asked to."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import no_links
from dist_sketch.core.saved import read_status
from dist_sketch.core.signals import signal_on_parent_death
from dist_sketch.core.words import duration
from dist_sketch.experiments.planning import Plan, PlanLine

STOPPED, FAILED = os.EX_TEMPFAIL, 1  # exit codes
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
POLL_S = 0.1


class Runner:
    """Starts lines and passes a request to stop to the one that is running, so that a training saves its state."""

    def __init__(self, logs: Path):
        self.asked = False
        self._logs = logs
        self._child: subprocess.Popen[bytes] | None = None
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def close(self) -> None:
        """Restores the handlers of the signals."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        self._ask_child()

    def _ask_child(self) -> None:
        # Always SIGTERM: launchers pass it on to their ranks, but SIGUSR2 would kill a launcher.
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.send_signal(signal.SIGTERM)

    def log(self, line: PlanLine) -> Path:
        """The file that gets the output of a line."""
        return self._logs / f"{line.name}.log"

    def start(self, line: PlanLine) -> int:
        """Runs a line to its end; returns its exit code.

        Raises:
            UserError: there is no such program, or the log cannot be written.
        """
        command = shlex.split(line.command)
        if command[0] == "dist-sketch":  # this installation, even if its script is not on the PATH
            command[:1] = [sys.executable, "-P", "-m", "dist_sketch"]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        log = self.log(line)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab", opener=no_links) as sink:
                sink.write(f"$ {line.command}\n".encode())
                sink.flush()
                begin = sink.tell()
                # It writes to the file, not to a pipe: it must be able to save its state after this process was killed.
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # Ctrl-C in the terminal reaches only this process, which passes it on
                    preexec_fn=partial(signal_on_parent_death, signal.SIGTERM),
                )
        except FileNotFoundError as e:
            raise UserError(
                f"{command[0]}: there is no such program to start a line with (--launch); to set variables, use "
                "--launch 'env NAME=VALUE accelerate launch ...'"
            ) from e
        except OSError as e:
            raise UserError(f"{log}: cannot be written, or the line cannot be started ({e.strerror})") from e
        if self.asked:  # before the child existed
            self._ask_child()
        with open(log, "rb") as source:
            source.seek(begin)
            while self._child.poll() is None:
                _show(source.read())
                time.sleep(POLL_S)
            _show(source.read())
        code, self._child = self._child.returncode, None
        return code


def _show(output: bytes) -> None:
    with suppress(OSError):  # the terminal may be closed
        sys.stdout.buffer.write(output)  # bytes, because a read may end within a character
        sys.stdout.flush()


def run(plan: Plan) -> int:
    """Runs the lines that are not done.

    Returns:
        0: all lines are done. STOPPED: it was asked to stop; the same command continues. FAILED: some lines failed; all
        lines that do not depend on them are done.
    """
    with closing(Runner(plan.out / "logs")) as runner:
        return _run(plan, runner)


class Clock:
    """How long the lines of a plan take: what is over, and what is left by the lines of the same kind so far."""

    def __init__(self, lines: Sequence[PlanLine]) -> None:
        self._began = time.monotonic()
        self._work = {line.name: _work(line) for line in lines}  # as it is now: a training may go on from an epoch
        self._took: dict[str, list[float]] = defaultdict(list)  # s for each unit of a line's work, by its kind

    def note(self, line: PlanLine, seconds: float) -> None:
        """Takes the time of a line that is done."""
        self._took[line.kind].append(seconds / self._work[line.name])

    def told(self, left: Sequence[PlanLine]) -> str:
        """The time so far, and the time that the lines need that are `left`."""
        so_far = f"{duration(time.monotonic() - self._began)} so far"
        if not left:
            return so_far
        if any(line.kind not in self._took for line in left):
            return f"{so_far}; time left: not known before a line of each kind is done"
        return f"{so_far}; about {duration(sum(self._work[x.name] * fmean(self._took[x.kind]) for x in left))} left"


def _work(line: PlanLine) -> int:
    """How much a line has to do, beside others of its kind: epochs of a training that are not done yet."""
    if line.kind == "infer":
        return 1
    return max(1, line.run.config.train.epochs - read_status(line.run.folder).get("epoch", 0))


def _run(plan: Plan, runner: Runner) -> int:
    lines, failed, skipped, clock = plan.lines, [], [], Clock(plan.lines)
    say = partial(print, flush=True)
    waiting = [i for i, line in enumerate(lines, 1) if not line.done()]
    for i, line in enumerate(lines, 1):
        head = f"[{i}/{len(lines)}] {line.name}"
        if line.done():
            say(f"{head}: done before")
            continue
        if line.kind == "infer" and not line.run.trained():
            say(f"{head}: skipped, because its training failed")
            skipped.append(line.name)
            continue
        say(f"{head}: {line.command}")
        status = line.run.folder / "status.json"
        before, began = _written_at(status), time.monotonic()
        code = runner.start(line)
        # Somebody else may have asked the training to stop; the exit code of a launcher does not say so.
        saved = line.kind == "train" and _written_at(status) != before
        if runner.asked or code == STOPPED or (saved and read_status(status.parent).get("state") == "stopped"):
            say(f"{head}: stopped; the same command goes on from there")
            return STOPPED
        if code != 0 or not line.done():
            why = f"exit code {code}" if code else "exit code 0, but its results are missing"
            say(f"{head}: FAILED ({why}); its output: {runner.log(line)}")
            failed.append(line)
            continue
        took_s = time.monotonic() - began
        clock.note(line, took_s)
        gone = {line.run.name for line in failed}
        left = [lines[k - 1] for k in waiting if k > i and lines[k - 1].run.name not in gone]
        say(f"{head}: done in {duration(took_s)}; {clock.told(left)}")
    for line in failed:
        print(f"error: failed: {line.name}; its output: {runner.log(line)}", file=sys.stderr)
    if skipped:
        print(f"skipped, because their training failed: {', '.join(skipped)}", file=sys.stderr)
    return FAILED if failed else 0


def _written_at(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0
