"""W&B never hurts: if its server, its process or its disk fails, training ends as it does without W&B.

The networks are tiny (`forks`); W&B's client and process are real, and speak HTTP with a local server.
"""

import errno
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from support.forks import Ended, Forks, wait_until
from support.jobs import children
from support.outcome import Outcome, outcome
from support.wandb_server import Mood, Server

from dist_sketch.tracking.wandb_run import fragments

STEPS = 3  # an epoch of the 13 pairs of `shards` at batch 4
TIMEOUT_S = 3.0
BUSY_S = 40.0  # what a busy machine may need in addition; W&B itself would wait for 90 s and more
ONLINE = ("--track.wandb", "online", "--track.timeout-s", TIMEOUT_S)


# ---------------------------------------------------------------- in the run


def timed(file: str) -> None:
    """Hook: records how long W&B's start took, including its import."""
    from dist_sketch.tracking.wandb_run import WandbRun

    start = WandbRun.__init__

    def measured(self: WandbRun, *arguments: Any, **more: Any) -> None:
        began = time.monotonic()
        start(self, *arguments, **more)
        Path(file).write_text(str(time.monotonic() - began))

    WandbRun.__init__ = measured  # type: ignore[method-assign]


def to_its_process(number: str) -> None:
    """Hook: sends W&B's own process a signal after the second step."""
    from dist_sketch.training.step_log import StepLog

    read = StepLog.read

    def signalling(self: StepLog, state: Any) -> bool:
        must_stop = read(self, state)
        if state.step == 2:
            (core,) = [p for p in children(os.getpid()) if b"wandb-core" in Path(f"/proc/{p}/cmdline").read_bytes()]
            os.kill(core, int(number))
        return must_stop

    StepLog.read = signalling  # type: ignore[method-assign]


def full_disk(of: str, folder: str) -> None:
    """Hook: W&B's process, or its library in our process, cannot write its files."""
    if of == "its process":
        start = subprocess.Popen.__init__

        def small(self: Any, command: Any, *arguments: Any, **more: Any) -> None:
            if "wandb-core" in str(command):
                more["preexec_fn"] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
            start(self, command, *arguments, **more)

        subprocess.Popen.__init__ = small  # type: ignore[method-assign]
        return
    make = os.mkdir

    def refused(path: Any, *arguments: Any, **more: Any) -> None:
        if os.path.abspath(path).startswith(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        make(path, *arguments, **more)

    os.mkdir = refused


def held(marker: str) -> None:
    """Hook: the process waits after its second step, until the file MARKER.go is there."""
    from dist_sketch.training.step_log import StepLog

    read = StepLog.read

    def holding(self: StepLog, state: Any) -> bool:
        must_stop = read(self, state)
        if state.step == 2:
            Path(marker).touch()
            wait_until(Path(f"{marker}.go").exists, "leave to go on")
        return must_stop

    StepLog.read = holding  # type: ignore[method-assign]


# ---------------------------------------------------------------- what is compared


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks("test_wandb_faults", tmp_path_factory.mktemp("logs"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def options(shards: Path) -> tuple[Any, ...]:
    more = ("--train.validate-limit", 2, "--train.sample-count", 2, "--train.epochs", 1)
    return ("train", "--data.shards", shards, *TINY, *more)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, forks: Forks, options: tuple[Any, ...]) -> Outcome:
    """The run without W&B."""
    run = tmp_path_factory.mktemp("reference") / "run"
    assert forks.run(*options, "--out", run).code == 0
    assert not (run / "wandb").exists()
    return without_wandb(run)


def without_wandb(run: Path) -> Outcome:
    """What a run left, without W&B's files."""
    found = outcome(run)
    content = {name: value for name, value in found.content.items() if not name.startswith("wandb/")}
    return found._replace(files={f for f in found.files if not f.startswith("wandb/")}, content=content)


def unhurt(ended: Ended, run: Path, reference: Outcome) -> str:
    """Asserts that a run ended as it does without W&B; returns its warnings."""
    assert ended.code == 0, ended
    assert without_wandb(run) == reference
    assert "Traceback" not in ended.err, ended.err
    said = [line for line in ended.out.splitlines() if line.startswith("warning:")]
    assert len(said) <= 2, said
    assert all("W&B" in line for line in said), said
    return "\n".join(said)


def no_process_is_left(run: Path) -> None:
    """Asserts that W&B's own process ended with ours."""
    mine = [p for p in children(1) if b"wandb-core" in Path(f"/proc/{p}/cmdline").read_bytes()]
    named = [p for p in mine if str(run).encode() in Path(f"/proc/{p}/environ").read_bytes()]
    wait_until(lambda: not any(Path(f"/proc/{p}/cwd").exists() for p in named), "the end of W&B's process")


# ---------------------------------------------------------------- its server


@pytest.mark.parametrize("mood", ["refuses", "hangs", "nonsense", 401, 500])
def test_a_server_that_fails(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Outcome, mood: Mood
) -> None:
    run, took = tmp_path / "run", tmp_path / "took"
    with Server(mood if mood != "refuses" else "good") as server:
        if mood == "refuses":
            server.close()
        began = time.monotonic()
        ended = forks.run(*options, *ONLINE, "--out", run, hook=("timed", took), **server.env)
        all_of_it = time.monotonic() - began
    said = unhurt(ended, run, reference)
    assert re.match(r"warning: W&B (is not reached|is switched off)", said), said
    assert float(took.read_text()) < TIMEOUT_S + BUSY_S
    assert all_of_it < 2 * TIMEOUT_S + BUSY_S + 20
    no_process_is_left(run)


@pytest.mark.parametrize("mood", ["refuses", 401])
def test_where_there_is_time_left_it_logs_offline(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Outcome, mood: Mood
) -> None:
    run = tmp_path / "run"
    with Server(mood if mood != "refuses" else "good") as server:
        if mood == "refuses":
            server.close()
        ended = forks.run(*options, "--track.wandb", "online", "--track.timeout-s", 20, "--out", run, **server.env)
    said = unhurt(ended, run, reference)
    assert re.fullmatch(rf"warning: W&B is not reached \(CommError: .+\); .+ `dist-sketch sync {run}`", said), said
    assert len([f for f in fragments(run) if not f.online]) == 1


@pytest.mark.parametrize("mood", ["hangs", 500])
def test_a_server_that_fails_in_the_middle(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Outcome, mood: Mood
) -> None:
    run, marker = tmp_path / "run", tmp_path / "marker"
    with Server() as server:
        command = (*options, *ONLINE, "--track.timeout-s", 20, "--out", run)
        pid = forks.start(*command, hook=("held", marker), **server.env)
        wait_until(marker.exists, "the second step", lambda: str(forks.printed(pid)))
        assert "UpsertBucket" in server.operations
        server.mood = mood
        began = time.monotonic()
        (tmp_path / "marker.go").touch()
        ended = forks.wait(pid)
        assert time.monotonic() - began < 20 + BUSY_S
    assert "W&B" in unhurt(ended, run, reference)
    no_process_is_left(run)


def test_without_an_account_it_logs_offline(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Outcome
) -> None:
    env = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_MODE": "online"}
    for way in ("auto", "online"):
        run = tmp_path / way
        ended = forks.run(*options, "--track.wandb", way, "--track.timeout-s", 60, "--out", run, **env)
        said = unhurt(ended, run, reference)
        assert ("knows no account here" in said) == (way == "online")
        (fragment,) = fragments(run)
        assert not fragment.online


def test_without_a_network(tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Outcome) -> None:
    run, env = tmp_path / "run", Server().env | {"WANDB_BASE_URL": "http://wandb.invalid"}
    ended = forks.run(*options, *ONLINE, "--out", run, **env)
    assert "W&B" in unhurt(ended, run, reference)


# ---------------------------------------------------------------- its process, its disk


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGUSR2], ids=lambda n: n.name)
def test_its_process_fails(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Outcome, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    command = (*options, "--track.wandb", "offline", "--track.timeout-s", 10, "--out", run)
    ended = forks.run(*command, hook=("to_its_process", int(number)), WANDB_MODE="offline")
    said = unhurt(ended, run, reference)
    assert ("warning: W&B is switched off for this run" in said) == (number != signal.SIGUSR2)
    no_process_is_left(run)


@pytest.mark.parametrize("of", ["its process", "its library"])
def test_a_disk_that_is_full_for_its_files(
    tmp_path: Path, forks: Forks, options: tuple[Any, ...], reference: Outcome, of: str
) -> None:
    run = tmp_path / "run"
    command = (*options, "--track.wandb", "offline", "--track.timeout-s", 10, "--out", run)
    ended = forks.run(*command, hook=("full_disk", of, run / "wandb"), WANDB_MODE="offline")
    unhurt(ended, run, reference)


# ---------------------------------------------------------------- ranks


def test_only_the_first_rank_logs(tmp_path: Path, forks: Forks, options: tuple[Any, ...]) -> None:
    run = tmp_path / "run"
    command = (*options, "--track.wandb", "offline", "--track.timeout-s", 60, "--out", run)
    for rank, ended in enumerate(forks.run_ranks(2, *command, WANDB_MODE="offline")):
        assert ended.code == 0, (rank, ended)
    assert len(fragments(run)) == 1
