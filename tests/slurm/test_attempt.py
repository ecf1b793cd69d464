"""One attempt of a job: signals for its step, then done, requeue or stop; `srun` and `scontrol` are stand-ins here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Run
from support.forks import wait_until

from dist_sketch.slurm import attempt

# A step that writes a status and ends, either at once or when it is warned.
STEP = """
import json, pathlib, signal, sys, time
state, wait, code = sys.argv[1:4]
run = pathlib.Path(sys.argv[4])
warnings = []
print("ignores USR2", signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN, flush=True)
signal.signal(signal.SIGUSR2, lambda n, frame: warnings.append(n))
print("listens", flush=True)
until = time.monotonic() + 60
while wait == "warned" and not warnings and time.monotonic() < until:
    time.sleep(0.01)
status = {"state": state, "step": 5, "steps": 9, "time": time.time()}
(run / "status.json").write_text(json.dumps(status))
raise SystemExit(int(code))
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder; `scontrol` records its arguments, and ends the job as SLURM does."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol\nkill -TERM $PPID\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def step(run: Path, state: str, wait: str = "no", code: int = 0) -> list[object]:
    return [sys.executable, "-c", STEP, state, wait, code, run]


def requeued(run: Path) -> str:
    recorded = run.parent / "scontrol"
    return recorded.read_text() if recorded.exists() else ""


def test_done(cli: Run, job: Path) -> None:
    done = cli("leg", job, "--", *step(job, "finished"))
    assert done.returncode == 0
    assert done.stdout.startswith("=== job 12 leg 0: no node, ")
    assert done.stdout.endswith("ignores USR2 True\nlistens\n=== job 12 leg 0: done: finished at step 5 ===\n")
    assert requeued(job) == ""


def test_only_a_finished_run_has_a_second_step(cli: Run, job: Path) -> None:
    then = f"touch {job}/second"
    assert cli("leg", job, "--then", then, "--", *step(job, "failed", code=1), SLURM_RESTART_COUNT="9").returncode == 75
    assert not (job / "second").exists()
    assert cli("leg", job, "--then", then, "--", *step(job, "finished")).returncode == 0
    assert (job / "second").exists()
    done = cli("leg", job, "--then", "false", "--", *step(job, "finished"))
    assert done.returncode == 75
    assert "stop: finished at step 5, but its second step ended with exit code 1" in done.stdout


def test_saved_is_requeued_and_failed_twice_is_not(cli: Run, job: Path) -> None:
    done = cli("leg", job, "--", *step(job, "stopped", code=1))
    assert (done.returncode, requeued(job)) == (75, "requeue 12\n")
    assert "requeue: saved at step 5" in done.stdout
    cli("leg", job, "--", *step(job, "failed", code=1))
    done = cli("leg", job, "--", *step(job, "failed", code=1))
    assert (done.returncode, requeued(job)) == (75, "requeue 12\n" * 2)
    assert "stop: failed twice, and got no further than step 5" in done.stdout
    assert f"{job}: failed at step 5 of 9" in done.stderr  # as `dist-sketch logs`


def test_requeues_are_counted(cli: Run, job: Path) -> None:
    for _ in range(2):
        cli("leg", job, "--requeues", 1, "--", *step(job, "stopped"))
    assert requeued(job) == "requeue 12\n"


def test_a_warning_reaches_the_step_and_a_cancelled_job_is_not_requeued(job: Path) -> None:
    def start(*step: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", "-m", "dist_sketch", "leg", job, "--", *step]
        process = subprocess.Popen([*map(str, command)], stdout=open(job / "out", "w"))  # noqa: SIM115
        wait_until(lambda: "listens" in (job / "out").read_text(), "the step")
        return process

    process = start(*step(job, "stopped", "warned"))
    process.send_signal(signal.SIGUSR2)
    assert process.wait(60) == 75
    assert requeued(job) == "requeue 12\n"
    records = [json.loads(line) for line in (job / "logs" / "legs.jsonl").read_text().splitlines()]
    assert [(r["next"], r["warned"]) for r in records] == [("requeue", True)]

    started = time.monotonic()
    process = start("sh", "-c", "echo listens; sleep 1")
    process.send_signal(signal.SIGTERM)  # SLURM ends the step by itself; here it ends in a second
    assert process.wait(60) == 128 + signal.SIGTERM
    assert time.monotonic() - started < 30
    assert requeued(job) == "requeue 12\n"
    assert (job / "out").read_text().endswith("=== ended by SLURM ===\n")
    assert json.loads((job / "logs" / "legs.jsonl").read_text().splitlines()[-1])["next"] == "ended"


def test_a_second_step_has_nothing_to_save(job: Path) -> None:
    """If it is warned, the job is requeued at once, and the next attempt runs it again."""
    command = [sys.executable, "-u", "-m", "dist_sketch", "leg", job, "--then", "sh -c 'echo second; sleep 60'", "--"]
    with open(job / "out", "w") as out:
        process = subprocess.Popen([*map(str, command), *map(str, step(job, "finished"))], stdout=out)
    wait_until(lambda: "second" in (job / "out").read_text(), "the second step")
    process.send_signal(signal.SIGUSR2)
    assert process.wait(30) == 75
    assert requeued(job) == "requeue 12\n"
    assert "requeue: finished at step 5; the second step has not finished" in (job / "out").read_text()


def test_a_task_of_an_array_requeues_only_itself(cli: Run, job: Path) -> None:
    """The job id of the last task is the array's: for scontrol it would mean all tasks."""
    env = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    done = cli("leg", job, "--", *step(job, "stopped"), **env)
    assert requeued(job) == "requeue 12_3\n"
    assert done.stdout.startswith("=== job 12_3 leg 0: ")


def test_the_step_gets_the_end_time_of_the_job(cli: Run, job: Path) -> None:
    squeue = job.parent / "bin" / "squeue"
    squeue.write_text(f'#!/bin/sh\necho "$SLURM_TIME_FORMAT $@" > {job}/asked\necho 1234567890\n')
    squeue.chmod(0o755)
    cli("leg", job, "--", "sh", "-c", f"echo $SLURM_JOB_END_TIME > {job}/seen")
    assert (job / "seen").read_text() == "1234567890\n"
    assert (job / "asked").read_text() == "%s --noheader --jobs=12 --format=%e\n"


def test_gpus_that_the_steps_would_not_see_are_refused(cli: Run, job: Path) -> None:
    done = cli("leg", job, "--", "true", SLURM_GPUS_ON_NODE="8", SLURM_GPUS_PER_NODE="1")
    assert done.returncode == 2
    assert "this node gives the job 8 GPU(s), but its steps only 1: request them by --gpus-per-node=8" in done.stderr
    attempt.check_gpus({"SLURM_GPUS_ON_NODE": "2", "SLURM_GPUS_PER_NODE": "h100:2"})
    attempt.check_gpus({"SLURM_GPUS_PER_NODE": "0"})
    attempt.check_gpus({})


@pytest.mark.parametrize("count", ["abc", "-1", "1.5", "9" * 30])
def test_a_count_of_restarts_that_is_no_number_is_refused(cli: Run, job: Path, count: str) -> None:
    done = cli("leg", job, "--", "true", SLURM_RESTART_COUNT=count)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: SLURM_RESTART_COUNT={count}: must be a number from 0 to ")
    assert not (job / "logs").exists()


def test_mistakes(cli: Run, job: Path) -> None:
    done = cli("leg", job, "--", "no-such-program")
    assert (done.returncode, done.stderr) == (
        2,
        "error: no-such-program: cannot be started (No such file or directory)\n",
    )
    assert cli("leg", job).returncode == 2
