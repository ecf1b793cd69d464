"""The launcher of a node: who it is by SLURM's variables, the command it starts, the signals it hands on."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from support.forks import wait_until

from dist_sketch.core.errors import UserError
from dist_sketch.core.fileio import read_json
from dist_sketch.slurm import node

# As srun gives them to the second of two tasks.
STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NODEID": "1",
    "SLURM_CPUS_PER_TASK": "16",
}


def test_place_on_gpus() -> None:
    found = node.read_place({**STEP, "SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert found == node.NodePlace(nodes=2, node=1, processes=4, gpus=True, address="gpu07", port=24711, threads=4)
    assert node.read_place({**STEP, "SLURM_GPUS_ON_NODE": "4"}).processes == 4
    assert node.read_place({**STEP, "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}).processes == 2
    assert node.read_place({**STEP, "SLURM_GPUS_ON_NODE": "4"}, 2).processes == 2


def test_place_on_cpus() -> None:
    for env in (STEP, {**STEP, "CUDA_VISIBLE_DEVICES": "NoDevFiles"}):
        found = node.read_place(env)
        assert (found.processes, found.gpus, found.threads) == (1, False, 16)
    found = node.read_place({**STEP, "SLURM_GPUS_ON_NODE": "4", "ACCELERATE_USE_CPU": "true"}, 2)
    assert (found.processes, found.gpus, found.threads) == (2, False, 8)
    assert node.read_place({**STEP, "SLURM_CPUS_PER_TASK": "1"}, 2).threads == 1


@pytest.mark.parametrize("name", [n for n in STEP if n != "SLURM_CPUS_PER_TASK"])
def test_a_missing_variable_is_no_localhost(name: str) -> None:
    for value in ({}, {name: ""}):
        with pytest.raises(UserError, match=f"^{name} is "):
            node.read_place({**{k: v for k, v in STEP.items() if k != name}, **value})


def test_one_task_a_node() -> None:
    with pytest.raises(UserError, match=r"srun started 8 tasks on 2 node\(s\): each node needs one"):
        node.read_place({**STEP, "SLURM_STEP_NUM_TASKS": "8"})


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
    assert node.first_host(names) == first


@given(st.integers(1, 2**31), st.integers(1, 11_999))
def test_ports_of_neighbouring_jobs_differ(job: int, apart: int) -> None:
    assert node.port(job) != node.port(job + apart)
    assert 20_000 <= node.port(job) < 32_000  # ephemeral ports begin at 32768, SLURM's end at 6819 or begin at 60001


def test_command() -> None:
    place = node.read_place(STEP, 2)
    line = " ".join(node.command(place, ("train", "--out", "a b"))[1:])
    assert line == (
        "-m accelerate.commands.launch --multi_gpu --num_machines 2 --machine_rank 1 --num_processes 4 "
        "--main_process_ip gpu07 --main_process_port 24711 --mixed_precision no --dynamo_backend no "
        "-m dist_sketch train --out a b"
    )
    alone = node.read_place({**STEP, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NODEID": "0"})
    assert node.command(alone, ("train",))[1:] == ["-m", "dist_sketch", "train"]


def test_variables(tmp_path: Path) -> None:
    found = node.variables(node.read_place(STEP, 2), tmp_path, {"A": "1"})
    assert found["ACCELERATE_USE_CPU"] == "true"
    assert (found["OMP_NUM_THREADS"], found["A"], found["DIST_SKETCH_LOGS"]) == ("8", "1", str(tmp_path))
    assert node.variables(node.read_place(STEP, 2), None, {"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"
    gpus = node.variables(node.read_place({**STEP, "SLURM_GPUS_ON_NODE": "2"}), None, {})
    assert "ACCELERATE_USE_CPU" not in gpus
    assert "DIST_SKETCH_LOGS" not in gpus


def test_gpus_that_slurm_does_not_know_are_no_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    monkeypatch.setattr(node, "DEVICES", tmp_path)
    with pytest.raises(UserError, match=r"has 2 GPU\(s\), but SLURM gave this job none: --gpus-per-node=2"):
        node.read_place(STEP)
    for more in ({"ACCELERATE_USE_CPU": "true"}, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, {"SLURM_GPUS_ON_NODE": "0"}):
        assert not node.read_place(STEP | more).gpus


def test_a_node_s_own_words_are_in_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dist_sketch", "node", "--logs", tmp_path, "--stage", tmp_path, "--", "train"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env={**os.environ, **STEP})
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'manifest.json'}: cannot be read (No such file or directory)\n"
    assert done.stderr in (tmp_path / "node-00001.log").read_text()


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port {port} of .* is taken .*; choose --port N$"):
            node.check_port(port)
    node.check_port(port)


# A launcher with one rank: it must get no signal, the rank all of them.
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
MINDER = """
import os, sys
from dist_sketch.slurm import node
log = open(sys.argv[1], "ab")
print("begins", flush=True)
ranks = node.NodeRanks([sys.executable, *sys.argv[2:]], os.environ, [sys.stdout.buffer, log], launcher=True)
raise SystemExit(ranks.wait())
"""


def minder(log: Path, *command: str) -> subprocess.Popen[str]:
    """A process that minds another one, as a node's does."""
    return subprocess.Popen(
        [sys.executable, "-c", MINDER, str(log), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_signals_reach_the_ranks_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = minder(log, "-c", LAUNCHER)
    for number, word in ((signal.SIGUSR2, "listens"), (signal.SIGTERM, f"rank got {int(signal.SIGUSR2)}")):
        wait_until(lambda word=word: log.exists() and word in log.read_text(), word)  # type: ignore[misc]
        process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 7
    said = ["ignores True", "listens", f"rank got {int(signal.SIGUSR2)}", "rank got 15", "launcher ends"]
    assert log.read_text().splitlines() == said
    assert out.splitlines() == ["begins", *said]


def test_term_ends_a_launcher_without_ranks(tmp_path: Path) -> None:
    process = minder(tmp_path / "log", "-c", "import time; print('here', flush=True); time.sleep(600)")
    wait_until(lambda: (tmp_path / "log").exists() and "here" in (tmp_path / "log").read_text(), "the launcher")
    process.send_signal(signal.SIGUSR2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM


def test_what_a_dead_launcher_leaves_does_not_hold_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "LAST_WORDS_S", 2.0)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)"
    try:
        with open(tmp_path / "log", "wb") as log:
            started = time.monotonic()
            assert node.NodeRanks([sys.executable, "-c", code], os.environ, [log], launcher=True).wait() == 0
        assert time.monotonic() - started < 30
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.kill(int((tmp_path / "log").read_text()), signal.SIGKILL)


def test_a_node_trains_and_stops(shards: Path, tmp_path: Path) -> None:
    """The whole way without SLURM's daemons: two ranks, a signal to the node's process, all is saved, a log a rank."""
    run = tmp_path / "run"
    step = {**STEP, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NODEID": "0"}
    step |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid()), "SLURM_RESTART_COUNT": "2"}
    command = [sys.executable, "-m", "dist_sketch", "node", "--procs", "2", "--logs", str(run / "logs"), "--", "train"]
    command += ["--data.shards", shards, *TINY, "--train.epochs", 1000, "--norm", "none", "--out", run]
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
