"""The launcher of a node: the command that it starts, by SLURM's variables, and the signals that it passes on."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL
from hypothesis import given
from hypothesis import strategies as st
from support.forks import wait_until

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json
from dist_sketch.slurm import node_launcher

# As srun gives them to the second of two tasks.
STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NODEID": "1",
    "SLURM_CPUS_PER_TASK": "16",
}


ALONE = {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NODEID": "0"}


def launched(env: dict[str, str], processes: int | None = None, port: int | None = None) -> tuple[int, bool, int]:
    """Ranks on all nodes, whether they use GPUs, and threads per rank."""
    command, found = node_launcher.launch(("train",), env, processes=processes, port=port)
    ranks = int(found["DIST_SKETCH_RANKS"])
    assert ("--num_processes" in command) == (ranks > 1)
    return ranks, "ACCELERATE_USE_CPU" not in found, int(found["OMP_NUM_THREADS"])


def test_ranks_on_gpus() -> None:
    four = {**STEP, "SLURM_GPUS_ON_NODE": "4"}
    assert launched({**four, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}) == (8, True, 4)
    assert launched(four) == (8, True, 4)
    assert launched(four, 2) == (4, True, 8)
    assert launched({**STEP, "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}) == (4, True, 8)


@pytest.mark.parametrize(
    ("visible", "count"), [("-1", 0), ("", 0), ("NoDevFiles", 0), ("0,-1,1", 1), ("0,1,", 2), (" 0, 1", 2)]
)
def test_gpus_count_up_to_the_first_entry_that_is_none(visible: str, count: int) -> None:
    """As CUDA counts them."""
    ranks, on_gpus, _ = launched({**STEP, "SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": visible})
    assert (ranks, on_gpus) == (2 * max(count, 1), count > 0)


def test_ranks_on_cpus() -> None:
    for env in (STEP, {**STEP, "CUDA_VISIBLE_DEVICES": "NoDevFiles"}):
        assert launched(env) == (2, False, 16)
    assert launched({**STEP, "SLURM_GPUS_ON_NODE": "4", "ACCELERATE_USE_CPU": "true"}, 2) == (4, False, 8)
    assert launched({**STEP, "SLURM_CPUS_PER_TASK": "1"}, 2) == (4, False, 1)
    assert launched({**STEP, "OMP_NUM_THREADS": "3"}, 2) == (4, False, 3)


@pytest.mark.parametrize("name", [n for n in STEP if n != "SLURM_CPUS_PER_TASK"])
def test_a_missing_variable_has_no_default(name: str) -> None:
    for value in ({}, {name: ""}):
        with pytest.raises(UserError, match=f"^{name} is "):
            launched({**{k: v for k, v in STEP.items() if k != name}, **value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "abc") for name in STEP if name != "SLURM_STEP_NODELIST"),
        ("SLURM_CPUS_PER_TASK", "4(x2)"),
        ("SLURM_GPUS_ON_NODE", "two"),
        ("SLURM_STEP_NUM_NODES", "0"),
        ("SLURM_STEP_NUM_TASKS", "-2"),
        ("SLURM_NODEID", "2"),
        ("SLURM_NODEID", "²"),
        ("SLURM_JOB_ID", "9" * 5000),
    ],
)
def test_a_variable_that_holds_no_such_number_is_named(name: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}=.*: must be a number from "):
        launched({**STEP, name: value})


def test_cpus_of_the_node_are_a_number() -> None:
    env = {name: value for name, value in STEP.items() if name != "SLURM_CPUS_PER_TASK"}
    assert launched({**env, "SLURM_CPUS_ON_NODE": "4"})[2] == 4
    with pytest.raises(UserError, match=r"^SLURM_CPUS_ON_NODE=4\(x2\): must be a number"):
        launched({**env, "SLURM_CPUS_ON_NODE": "4(x2)"})


@pytest.mark.parametrize("processes", [0, -1, 10**6])
def test_processes_have_a_range(processes: int) -> None:
    with pytest.raises(UserError, match=f"^--procs={processes}: must be a number from 1 to "):
        launched(STEP, processes)


@pytest.mark.parametrize("port", [0, -1, 65536, 99999])
def test_ports_have_a_range(port: int) -> None:
    with pytest.raises(UserError, match=f"^--port={port}: must be a number from 1 to 65,535"):
        launched(STEP, 2, port)


def test_a_log_needs_the_number_of_its_node(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dist_sketch", "node", "--logs", str(tmp_path / "logs"), "--", "train"]
    env = {**os.environ, **STEP, "SLURM_NODEID": "abc"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr.split(":")[:2]) == (2, ["error", " SLURM_NODEID=abc"])


def test_one_task_per_node() -> None:
    with pytest.raises(UserError, match=r"srun started 8 tasks on 2 node\(s\): each node needs one"):
        launched({**STEP, "SLURM_STEP_NUM_TASKS": "8"})


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[1-2]", "node1"),
        ("node[008-011,15],login", "node008"),
        ("node[3,7]", "node3"),
        ("r[1-2]n[10-20]-ib,x", "r1n10-ib"),
        ("a-b[2]", "a-b2"),
    ],
)
def test_first_host(names: str, first: str) -> None:
    assert node_launcher.first_host(names) == first


@given(st.integers(1, 2**31), st.integers(1, 11_999))
def test_ports_of_neighbouring_jobs_differ(job: int, apart: int) -> None:
    def port(number: int) -> int:
        command, _ = node_launcher.launch(("train",), {**STEP, "SLURM_JOB_ID": str(number)})
        return int(command[command.index("--main_process_port") + 1])

    assert port(job) != port(job + apart)
    assert 20_000 <= port(job) < 32_000  # ephemeral ports begin at 32768, SLURM's end at 6819 or begin at 60001


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    command, _ = node_launcher.launch(("train", "--out", "a b"), STEP, processes=2)
    assert command[0] == sys.executable
    assert " ".join(command[1:]) == (
        "-m accelerate.commands.launch --multi_gpu --num_machines 2 --machine_rank 1 --num_processes 4 "
        "--main_process_ip gpu07 --main_process_port 24711 --mixed_precision no --dynamo_backend no "
        "-m dist_sketch train --out a b"
    )
    where = f"node 1 of 2: {socket.gethostname()}, 2 process(es) on CPUs, 8 CPU(s) each; they meet at gpu07:24711\n"
    assert capsys.readouterr().out == where
    assert node_launcher.launch(("train",), STEP | ALONE)[0][1:] == ["-m", "dist_sketch", "train"]


def test_gpus_that_slurm_does_not_manage_are_not_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(node_launcher, "DEVICES", tmp_path)
    with pytest.raises(UserError, match=r"has 2 GPU\(s\), but SLURM gave this job none: --gpus-per-node=2"):
        launched(STEP)
    for more in ({"ACCELERATE_USE_CPU": "true"}, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, {"SLURM_GPUS_ON_NODE": "0"}):
        assert launched(STEP | more)[1] is False


def test_the_log_of_a_node_has_its_own_errors(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dist_sketch", "node", "--logs", tmp_path, "--stage", tmp_path, "--", "train"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env={**os.environ, **STEP})
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'manifest.json'}: cannot be read (No such file or directory)\n"
    assert done.stderr in (tmp_path / "node-00001.log").read_text()


def test_a_taken_port_is_named() -> None:
    first = {**STEP, "SLURM_NODEID": "0"}
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port {port} of .* is taken .*; choose --port N$"):
            launched(first, port=port)
    launched(first, port=port)


# A launcher with one rank: the rank must get all signals, the launcher none.
LAUNCHER = """
import signal, subprocess, sys
rank = '''
import signal, time
heard = []
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, lambda n, frame: (heard.append(n), print("rank got", n, flush=True)))
print("listens", flush=True)
while 15 not in heard:
    time.sleep(0.01)
'''
print("ignores", signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN, flush=True)
subprocess.run([sys.executable, "-c", rank])
print("launcher ends", flush=True)
raise SystemExit(7)
"""
WATCHER = """
import os, sys
from dist_sketch.slurm import node_launcher
log = open(sys.argv[1], "ab")
print("begins", flush=True)
env = {**os.environ, "DIST_SKETCH_RANKS": "2"}
raise SystemExit(node_launcher.run_ranks([sys.executable, *sys.argv[2:]], env, [sys.stdout.buffer, log]))
"""


def watcher(log: Path, *command: str) -> subprocess.Popen[str]:
    """A process that runs a launcher as `dist-sketch node` does."""
    return subprocess.Popen(
        [sys.executable, "-c", WATCHER, str(log), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_only_the_ranks_get_signals(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = watcher(log, "-c", LAUNCHER)
    for number, word in ((signal.SIGUSR2, "listens"), (signal.SIGTERM, f"rank got {int(signal.SIGUSR2)}")):
        wait_until(lambda word=word: log.exists() and word in log.read_text(), word)  # type: ignore[misc]
        process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 7
    said = ["ignores True", "listens", f"rank got {int(signal.SIGUSR2)}", "rank got 15", "launcher ends"]
    assert log.read_text().splitlines() == said
    assert out.splitlines() == ["begins", *said]


def test_term_ends_a_launcher_that_has_no_ranks(tmp_path: Path) -> None:
    process = watcher(tmp_path / "log", "-c", "import time; print('here', flush=True); time.sleep(600)")
    wait_until(lambda: (tmp_path / "log").exists() and "here" in (tmp_path / "log").read_text(), "the launcher")
    process.send_signal(signal.SIGUSR2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM


def test_orphaned_processes_do_not_keep_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_launcher, "SAVE_S", 2.0)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)"
    try:
        with open(tmp_path / "log", "wb") as log:
            started = time.monotonic()
            env = {**os.environ, "DIST_SKETCH_RANKS": "2"}
            assert node_launcher.run_ranks([sys.executable, "-c", code], env, [log]) == 0
        assert time.monotonic() - started < 30
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.kill(int((tmp_path / "log").read_text()), signal.SIGKILL)


def test_a_node_trains_and_stops(shards: Path, tmp_path: Path) -> None:
    """Without SLURM's daemons: two ranks, a signal to the node's process, the run is saved, each rank has its log."""
    run = tmp_path / "run"
    step = (
        STEP
        | ALONE
        | {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid()), "SLURM_RESTART_COUNT": "2"}
    )
    command = [sys.executable, "-m", "dist_sketch", "node", "--procs", "2", "--logs", str(run / "logs"), "--", "train"]
    command += ["--data.shards", shards, *SMALL, "--train.epochs", 1000, "--norm", "none", "--out", run]
    with open(tmp_path / "out", "wb") as out:
        process = subprocess.Popen([*map(str, command)], stdout=out, stderr=out, env={**os.environ, **step})
        try:
            wait_until(lambda: (run / "checkpoints").exists(), "a checkpoint", (tmp_path / "out").read_text)
            process.send_signal(signal.SIGUSR2)
            assert process.wait(120) not in (0, -signal.SIGUSR2)
        finally:
            process.kill()
    printed = (tmp_path / "out").read_text()
    assert read_json(run / "status.json")["state"] == "stopped"
    assert "stopped at step" in printed
    assert read_json(run / "config.json")["facts"]["world_size"] == 2
    logs = {p.name: p.read_text() for p in (run / "logs").iterdir()}
    assert set(logs) == {"node-00000.log", "rank-00001.log"}
    for text in logs.values():
        assert text.startswith(f"=== job {os.getpid()} leg 2 on {socket.gethostname()}, ")
    assert "stopped at step" in logs["node-00000.log"]
    assert logs["node-00000.log"].partition("===\n")[2] in printed
