"""A run stops when a signal asks it to, or by the clock, before the SLURM job's time is over."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SMALL, Run

from dist_sketch.core.fileio import read_json
from dist_sketch.core.signals import STOP_SIGNALS, StopRequest, before_job_end


@pytest.mark.parametrize("value", [None, "", "Unknown", "0", "1000"])
def test_no_end_or_one_that_is_over(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    if value is not None:
        monkeypatch.setenv("SLURM_JOB_END_TIME", value)
    assert before_job_end(120) == float("inf")


@pytest.mark.parametrize(("left", "before"), [(14400, 120), (480, 120), (60, 15)])
def test_so_long_before_the_end(left: int, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time())
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(now + left))
    assert now + left - before_job_end(120) == before


def test_the_clock_asks() -> None:
    assert not StopRequest().asked
    assert not StopRequest(ask_at=time.time() + 60).asked
    assert StopRequest(ask_at=time.time() - 1).asked


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts back the handlers of signals."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_of_these_signals_asks(number: signal.Signals, handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stop = StopRequest()
    stop.listen(*STOP_SIGNALS)
    assert not stop.asked
    os.kill(os.getpid(), number)
    assert stop.asked


def test_nohup_keeps_a_run_alive_after_its_terminal(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    stop.listen(*STOP_SIGNALS)
    os.kill(os.getpid(), signal.SIGHUP)
    assert not stop.asked


def test_a_run_saves_itself_before_the_job_s_end(cli: Run, shards: Path, tmp_path: Path) -> None:
    """It needs no signal for that."""
    train = ("train", "--data.shards", shards, *SMALL, "--train.epochs", 4, "--out", tmp_path)
    end = time.time() + 1000
    done = cli(*train, "--stop-before-end-s", 998, SLURM_JOB_END_TIME=str(end))
    assert done.returncode == 0, done.stderr  # a quarter of what is left is the most
    again = ("train", "--data.shards", shards, *SMALL, "--train.epochs", 4000, "--out", tmp_path)
    done = cli(*again, SLURM_JOB_END_TIME=str(time.time() + 8))
    assert done.returncode == 75, done.stderr
    found = read_json(tmp_path / "status.json")
    assert found["state"] == "stopped"
    assert 12 <= found["step"] < 12000
