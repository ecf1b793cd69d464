"""Processes that share a command's work: how many, whether they can start, and that none of them stays behind."""

import errno
import os
import signal
import subprocess
import sys
from multiprocessing import synchronize
from pathlib import Path

import pytest
from conftest import Run
from support.forks import wait_until

from dist_sketch.core.errors import UserError
from dist_sketch.core.workers import MOST, starting, workers


@pytest.mark.parametrize("count", [-1, MOST + 1, 10**9])
@pytest.mark.parametrize(
    "words",
    [
        ("synth", "OUT"),
        ("pack", "IN", "--out", "OUT"),
        ("infer", "--run", "portrait-128", "--input", "IN", "--out", "OUT"),
    ],
    ids=lambda words: words[0],
)
def test_a_number_of_processes_that_no_machine_can_bear_is_refused(
    tmp_path: Path, pairs: Path, cli: Run, words: tuple[str, ...], count: int
) -> None:
    known = {"IN": pairs, "OUT": tmp_path / "out"}
    done = cli(*(known.get(word, word) for word in words), f"--workers={count}")
    least = 0 if words[0] == "infer" else 1
    assert (done.returncode, done.stderr) == (2, f"error: --workers {count}: must be {least} to {MOST}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no room"), OSError(errno.EAGAIN, "no room"), ImportError("no room")]
)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_keeps_processes_from_starting_is_told(
    monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    def work() -> None:
        with workers(2, method, "--workers 0"):  # type: ignore[arg-type]
            raise AssertionError("nothing has started")

    monkeypatch.setattr(synchronize.SemLock, "__init__", refuse)
    with pytest.raises(
        UserError, match=r"^2 processes .* cannot be started \(.*no room\); is /dev/shm full or missing"
    ):
        work()


def test_what_fails_later_is_not_called_a_start() -> None:
    with pytest.raises(ValueError, match="mine"), starting("2 processes", "less"):
        raise ValueError("mine")


WORK = """
import ctypes, sys, time, types
if sys.argv[2] == "macos":
    library = ctypes.CDLL
    ctypes.CDLL = lambda name, *more, **others: library(name, *more, **others) if name else types.SimpleNamespace()
from dist_sketch.core.workers import workers
if __name__ == "__main__":
    with workers(2, sys.argv[1], "less") as pool:
        pool.submit(time.sleep, 0.1)
        print(*pool._processes, flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("system", ["linux", "macos"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_they_end_with_the_process_that_started_them(
    tmp_path: Path, number: signal.Signals, method: str, system: str
) -> None:
    (tmp_path / "work.py").write_text(WORK)
    words = [sys.executable, tmp_path / "work.py", method, system]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.send_signal(number)
        assert parent.wait() == -number
    assert len(pids) == 2
    wait_until(lambda: not any(lives(pid) for pid in pids), "their end")


def lives(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


INTERRUPTED = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)"
AFTERWARDS = "import signal, dist_sketch.__main__; print(signal.getsignal(signal.SIGINT) is {})"


def test_ctrl_c_while_the_command_is_imported_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "tyro.py").write_text(INTERRUPTED)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-m", "dist_sketch", "--help"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("before", ["default_int_handler", "SIG_IGN"])
def test_an_import_leaves_ctrl_c_as_it_was(before: str) -> None:
    code = f"import signal; signal.signal(signal.SIGINT, signal.{before}); " + AFTERWARDS.format(f"signal.{before}")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
