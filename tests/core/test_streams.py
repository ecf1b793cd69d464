"""Nobody listens: the reader is gone, the log's disk is full, the terminal hangs up or knows few characters."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import SMALL, TINY, Run
from support import forks
from support.forks import wait_until
from support.jobs import last_step

from dist_sketch.core.fileio import read_json
from dist_sketch.model import checkpoint

OLD_RUN = Path(__file__).parents[1] / "old_files" / "run"


def python(script: str, *arguments: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", f"from dist_sketch.core import streams\nstreams.make_tolerant()\n{script}"]
    return subprocess.run([*command, *arguments], timeout=120, **more)  # type: ignore[call-overload, no-any-return]


# ---------------------------------------------------------------- a run goes on


@pytest.mark.parametrize("loses", ["output", "error", "both"])
@pytest.mark.parametrize("how", ["the reader leaves", "the disk is full"])
def test_a_run_ends_as_if_somebody_listened(tmp_path: Path, shards: Path, how: str, loses: str) -> None:
    run, fifo, ends = tmp_path / "run", tmp_path / "fifo", []
    if how == "the reader leaves":
        os.mkfifo(fifo)
        ends = [os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)]
    lost = fifo if ends else Path("/dev/full")
    prints = (tmp_path / "out" if loses == "error" else lost, tmp_path / "err" if loses == "output" else lost)
    command = ("train", "--data.shards", shards, *TINY, "--train.epochs", 2, "--out", run)
    pid = forks.fork(prints, arguments=command, tiny=True, env={**os.environ, "ACCELERATE_USE_CPU": "true"})
    for end in ends:
        os.close(end)
    assert forks.wait(pid) == 0
    status = read_json(run / "status.json")
    assert (status["state"], status["step"]) == ("finished", 6)
    assert checkpoint.step_of(checkpoint.folders_of(run)[0]) == 6


def begin_terminal_session() -> None:
    """In a new process: the terminal on its standard input becomes its own, and its end ends the process."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # in case `nohup` started the tests
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_terminal_that_hangs_up_is_a_request_to_stop(tmp_path: Path, shards: Path) -> None:
    run = tmp_path / "run"
    command = ("train", "--data.shards", shards, *SMALL, "--train.epochs", 4000, "--out", run)
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dist_sketch", *map(str, command)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=begin_terminal_session,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "TERM": "xterm"},
    )
    try:
        os.close(terminal)
        os.set_blocking(ours, False)
        shown = b""

        def runs() -> bool:
            nonlocal shown
            with suppress(BlockingIOError):
                shown += os.read(ours, 1 << 16)
            return last_step(run) >= 3 or process.poll() is not None

        wait_until(runs, "three steps", lambda: shown.decode())
        assert b"epoch" in shown
        os.close(ours)
        assert process.wait(120) == os.EX_TEMPFAIL, shown
    finally:
        process.kill()
    status = read_json(run / "status.json")
    assert status["state"] == "stopped"
    assert checkpoint.step_of(checkpoint.folders_of(run)[0]) == status["step"]


# ---------------------------------------------------------------- the streams themselves


ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1, strict": {"PYTHONIOENCODING": "latin-1:strict"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
}
PRINTS = r"""
import sys
from rich.console import Console
from rich.table import Table
name = "a\udcff\u2192b"
print(name)
print(name, file=sys.stderr)
table = Table("what \u2192")
table.add_row("gr\u00fc\u00df")
Console().print(table)
"""


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_characters_that_a_terminal_does_not_know_are_replaced(encoding: str) -> None:
    """The name is one that is not valid UTF-8, as file names may be."""
    done = python(PRINTS, capture_output=True, env={**os.environ, **ENCODINGS[encoding]})
    assert (done.returncode, done.stderr.startswith(b"a\\udcff")) == (0, True), done.stderr
    assert done.stdout.startswith("a?→b\n".encode() if encoding == "utf-8" else b"a??b\n")
    assert b"what" in done.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_is_printed_arrives_whole_in_a_pipe_that_does_not_block(unbuffered: str) -> None:
    """A program that shares a terminal or pipe with us can make it non-blocking."""
    command = "import os, sys; os.set_blocking(1, False)\nfor n in range(40000): print(n)\nprint('x' * 300000)"
    done = python(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert done.stdout.decode() == "".join(f"{n}\n" for n in range(40000)) + "x" * 300000 + "\n"


def test_lines_arrive_when_they_are_printed_where_the_caller_asks_for_that() -> None:
    for stream, more in (("stdout", {"PYTHONUNBUFFERED": "1"}), ("stderr", {})):
        script = f"import sys, time; print('now', file=sys.{stream}); time.sleep(600)"
        command = [sys.executable, "-c", f"from dist_sketch.core import streams\nstreams.make_tolerant()\n{script}"]
        piped = {stream: subprocess.PIPE}
        with subprocess.Popen(command, env={**os.environ, **more}, **piped) as process:  # type: ignore[call-overload]
            try:
                assert getattr(process, stream).readline() == b"now\n"
            finally:
                process.kill()


@pytest.mark.parametrize("descriptors", [(1,), (2,), (1, 2), (0, 1, 2)])
def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path: Path, descriptors: tuple[int, ...]) -> None:
    """Else what anybody prints would go into that file."""
    script = """
import os, sys
file = open(sys.argv[1], "w")
print("out"), print("err", file=sys.stderr)
os.write(1, b"from C"), os.write(2, b"from C")
file.write(str(file.fileno()))
"""
    done = python(script, str(tmp_path / "file"), preexec_fn=lambda: [os.close(d) for d in descriptors])
    assert done.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


def test_a_command_s_tables_survive_an_old_terminal(new_cli: Run) -> None:
    done = new_cli("checkpoint", "list", OLD_RUN, **ENCODINGS["C"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "4" in done.stdout
