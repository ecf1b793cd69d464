"""`dist-sketch node`: starts the ranks of one node of a SLURM job, and passes on their signals and output.

`srun` starts it once per node. Only inside this step does SLURM tell which node it is: in a batch script SLURM_NODEID
is 0 on every node.
"""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from dist_sketch.core.errors import UserError
from dist_sketch.core.places import Place
from dist_sketch.slurm.numbers import MOST_NODES, MOST_RANKS, number
from dist_sketch.slurm.rank_logs import FOLDER_VARIABLE, open_log

FIRST_PORT, PORTS = 20_000, 12_000  # below Linux's ephemeral ports (32768-60999) and SLURM's (60001-63000)
RANKS_VARIABLE = "DIST_SKETCH_RANKS"  # the number of ranks on all nodes
STEP_VARIABLES = (
    *("SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS", "SLURM_NODEID", "SLURM_JOB_ID"),
    "SLURM_STEP_NODELIST",
)
DEVICES = Path("/dev")
DEVICE = re.compile(r"\d+|(GPU|MIG)-\S+")  # an entry of CUDA_VISIBLE_DEVICES
SAVE_S = 60.0  # how long ranks whose launcher is gone may take to save and to end


def run_node(
    command: tuple[str, ...], *, processes: int | None, port: int | None, logs: Path | None, stage: Place | None
) -> int:
    """Runs a command of dist-sketch on all ranks of this node; returns its exit code. `stage` are shards to copy first.

    Raises:
        UserError: as `launch`, or the shards cannot be copied. The node's log has the message, too.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # leaving removes the copy
    env, outputs = dict(os.environ), [sys.stdout.buffer]
    if logs:
        env[FOLDER_VARIABLE] = str(logs)
        file = open_log(logs, f"node-{number('SLURM_NODEID', env.get('SLURM_NODEID') or '0', most=MOST_NODES):05d}.log")
        outputs += [file] if file else []
    try:
        with ExitStack() as stack:
            if stage:
                from dist_sketch.data import local_copy

                env |= stack.enter_context(local_copy.staged(stage, local_copy.home(env)))
            launcher, env = launch(command, env, processes=processes, port=port)
            code = run_ranks(launcher, env, outputs)
    except UserError as e:
        for output in outputs[1:]:
            output.write(f"error: {e}\n".encode())
            output.flush()
        raise
    return code


def launch(
    command: tuple[str, ...], env: Mapping[str, str], *, processes: int | None = None, port: int | None = None
) -> tuple[list[str], dict[str, str]]:
    """The command line that starts this node's ranks of a command of dist-sketch, and their environment.

    Args:
        processes: ranks per node; None: one per GPU, or one if the job has no GPUs.
        port: where the ranks meet; None: one that depends on the job, so that two jobs can share a node.

    Raises:
        UserError: this is not a step, it has several tasks per node, the job has none of the node's GPUs, the port is
            taken, or a number is out of its range. Ranks that do not find each other would each train alone.
    """
    for name in STEP_VARIABLES:
        if not env.get(name):
            raise UserError(
                f"{name} is not set: `dist-sketch node` must be started by srun, one task per node "
                "(slurm/train.sbatch); without SLURM use `accelerate launch -m dist_sketch ...`"
            )
    nodes, tasks = (number(name, env[name], 1, MOST_NODES) for name in STEP_VARIABLES[:2])
    node, job = number("SLURM_NODEID", env["SLURM_NODEID"], 0, nodes - 1), number("SLURM_JOB_ID", env["SLURM_JOB_ID"])
    if processes is not None:
        number("--procs", str(processes), 1, MOST_RANKS)
    if port is not None:
        number("--port", str(port), 1, 65535)
    if tasks != nodes:
        raise UserError(f"srun started {tasks} tasks on {nodes} node(s): each node needs one, srun --ntasks-per-node=1")
    gpus = 0 if env.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") else _count_gpus(env)
    processes = processes or gpus or 1
    ranks = nodes * processes
    name = "SLURM_CPUS_PER_TASK" if env.get("SLURM_CPUS_PER_TASK") else "SLURM_CPUS_ON_NODE"
    threads = max(1, number(name, env.get(name) or "1", 1) // processes)
    address, port = first_host(env["SLURM_STEP_NODELIST"]), port or FIRST_PORT + job % PORTS
    program = [sys.executable, "-m", "dist_sketch", *command]
    if ranks > 1:
        if node == 0:
            _check_port(port)
        launcher = (  # --multi_gpu means: distributed, on CPUs too
            f"-m accelerate.commands.launch --multi_gpu --num_machines {nodes} --machine_rank {node} "
            f"--num_processes {ranks} --main_process_ip {address} --main_process_port {port} "
            "--mixed_precision no --dynamo_backend no"
        )
        program[1:1] = launcher.split()
    found = {"OMP_NUM_THREADS": str(threads), **env, RANKS_VARIABLE: str(ranks)}
    if ranks > 1 and not gpus:
        found["ACCELERATE_USE_CPU"] = "true"  # without it each rank would be rank 0 of 1
    print(
        f"node {node} of {nodes}: {socket.gethostname()}, {processes} process(es) on {'GPUs' if gpus else 'CPUs'}, "
        f"{threads} CPU(s) each; they meet at {address}:{port}",
        flush=True,
    )
    return program, found


def _count_gpus(env: Mapping[str, str]) -> int:
    """How many GPUs SLURM gives to this job on this node."""
    visible, on_node = env.get("CUDA_VISIBLE_DEVICES"), env.get("SLURM_GPUS_ON_NODE")
    if visible is not None:  # CUDA, too, stops at the first entry that is no device
        return len(list(takewhile(DEVICE.fullmatch, (entry.strip() for entry in visible.split(",")))))
    if on_node:
        return number("SLURM_GPUS_ON_NODE", on_node, most=MOST_RANKS)
    present = len(list(DEVICES.glob("nvidia[0-9]*")))
    if present and "ACCELERATE_USE_CPU" not in env:
        raise UserError(
            f"{socket.gethostname()} has {present} GPU(s), but SLURM gave this job none: --gpus-per-node={present}; if "
            "SLURM does not manage them, export CUDA_VISIBLE_DEVICES; to use CPUs, export ACCELERATE_USE_CPU=true"
        )
    return 0


def first_host(names: str) -> str:
    """The first name of a SLURM node list: node[08-11,15],login -> node08."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", names).partition(",")[0]


def _check_port(port: int) -> None:
    """Fails if another program has the port; otherwise the ranks would wait for each other in vain."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port may linger after an earlier attempt
        try:
            probe.bind(("", port))
        except OSError as e:
            raise UserError(f"port {port} of {socket.gethostname()} is taken ({e.strerror}); choose --port N") from e


def run_ranks(command: list[str], env: Mapping[str, str], outputs: Sequence[IO[bytes]]) -> int:
    """Runs a launcher with its ranks, or a single rank; passes signals on and copies the output; returns the exit code.

    SLURM signals only the first process of a task: this one. A launcher would die of USR2, and would kill its ranks
    half a minute after TERM. So the signals go to the ranks alone.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # launcher and ranks inherit this; a rank listens as soon as it can
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None

    def pass_on(number: int, frame: Any) -> None:
        ranks = _children(process.pid) if int(env[RANKS_VARIABLE]) > 1 else [process.pid]
        if number == signal.SIGTERM and not ranks:  # a launcher without ranks has nothing to save
            ranks = [process.pid]
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGUSR2, pass_on)
    ended_at, source = float("inf"), process.stdout.fileno()
    while time.monotonic() - ended_at < SAVE_S:
        if select.select([source], [], [], 1.0)[0]:
            data = os.read(source, 65536)
            if not data:
                break
            for output in outputs:
                with suppress(OSError):  # a full disk or a reader that has gone must not end the ranks
                    output.write(data)
                    output.flush()
        elif process.poll() is not None:
            ended_at = min(ended_at, time.monotonic())
    code = process.wait()
    return code if code >= 0 else 128 - code


def _children(parent: int) -> list[int]:
    """The running processes that `parent` has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, its_parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
            if int(its_parent) == parent and state != "Z":
                found.append(int(stat.parent.name))
    return found
