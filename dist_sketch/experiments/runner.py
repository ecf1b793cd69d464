"""Runs the lines of a plan one after the other: what is missing, each with its log, stopped cleanly when asked to."""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json
from dist_sketch.core.signals import signal_on_parent_s_death
from dist_sketch.experiments.planning import Line, Plan

STOPPED, FAILED = os.EX_TEMPFAIL, 1  # exit codes


SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


POLL_S = 0.1


class Runner:
    """Starts lines; a request to stop is handed on to the line that runs, so that a training saves itself."""

    def __init__(self, logs: Path):
        self.asked = False
        self._logs = logs
        self._child: subprocess.Popen[bytes] | None = None
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def close(self) -> None:
        """Signals mean again what they meant before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        self._hand_on()

    def _hand_on(self) -> None:
        # Always SIGTERM: launchers pass it on to their ranks, SIGUSR2 would kill them.
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.send_signal(signal.SIGTERM)

    def start(self, line: Line) -> int:
        """Runs a line to its end; returns its exit code.

        Raises:
            UserError: there is no such program, or the log cannot be written.
        """
        command = shlex.split(line.text)
        if command[0] == "dist-sketch":  # the one that runs here, also where no script lies on the PATH
            command[:1] = [sys.executable, "-m", "dist_sketch"]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        log = self.log(line)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as sink:
                sink.write(f"$ {line.text}\n".encode())
                sink.flush()
                begin = sink.tell()
                # Its output goes to the file itself: it outlives this process, and must be able to save itself then.
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # the terminal's Ctrl-C comes to us alone, and is handed on once
                    preexec_fn=_die_with_us,
                )
        except FileNotFoundError as e:
            raise UserError(
                f"{command[0]}: there is no such program to start a line with (--launch); variables stand before it as "
                "in --launch 'env NAME=VALUE accelerate launch ...'"
            ) from e
        except OSError as e:
            raise UserError(f"{log}: cannot be written, or the line cannot be started ({e.strerror})") from e
        if self.asked:  # between the last line and this one
            self._hand_on()
        with open(log, "rb") as source:
            source.seek(begin)
            while self._child.poll() is None:
                _show(source.read())
                time.sleep(POLL_S)
            _show(source.read())
        code, self._child = self._child.returncode, None
        return code

    def log(self, line: Line) -> Path:
        """Where the output of a line goes."""
        return self._logs / f"{line.name}.log"


def _die_with_us() -> None:
    """If this process is killed, the line is asked to stop."""
    signal_on_parent_s_death(signal.SIGTERM)


def _show(output: bytes) -> None:
    with suppress(OSError):  # a terminal that has gone
        sys.stdout.buffer.write(output)  # a letter may be cut in two
        sys.stdout.flush()


def run(plan: Plan) -> int:
    """Runs what is missing.

    Returns:
        0: all is done. STOPPED: it was asked to stop, the same command goes on. FAILED: some lines failed; all others
        that do not need them are done.
    """
    runner = Runner(plan.out / "logs")
    try:
        return _run(plan, runner)
    finally:
        runner.close()


def _run(plan: Plan, runner: Runner) -> int:
    lines, failed, left_out = plan.lines, [], []
    for i, line in enumerate(lines, 1):
        head = f"[{i}/{len(lines)}] {line.name}"
        if line.done():
            _say(f"{head}: done before")
            continue
        if line.kind == "infer" and not line.job.trained():
            _say(f"{head}: left out, its training failed")
            left_out.append(line)
            continue
        _say(f"{head}: {line.text}")
        before = _written(line)
        code = runner.start(line)
        if runner.asked or code == STOPPED or (_written(line) != before and _stopped(line)):
            _say(f"{head}: stopped; the same command goes on from there")
            return STOPPED
        if code != 0 or not line.done():
            why = f"exit code {code}" if code else "it ended as if all were well, but what it should leave is not there"
            _say(f"{head}: FAILED ({why}); its output: {runner.log(line)}")
            failed.append(line)
    for line in failed:
        print(f"error: failed: {line.name}; its output: {runner.log(line)}", file=sys.stderr)
    if left_out:
        print(f"left out, as their training failed: {', '.join(x.name for x in left_out)}", file=sys.stderr)
    return FAILED if failed else 0


def _written(line: Line) -> int:
    """When the training last wrote its status."""
    status = line.job.run / "status.json"
    return status.stat().st_mtime_ns if status.exists() else 0


def _stopped(line: Line) -> bool:
    """Whether the training saved itself when somebody else asked it to: a launcher's own exit code does not say so."""
    if line.kind != "train":
        return False
    try:
        return bool(read_json(line.job.run / "status.json").get("state") == "stopped")
    except UserError:
        return False


def _say(text: str) -> None:
    print(text, flush=True)
