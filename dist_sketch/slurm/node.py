"""`dist-sketch node`: what `srun` starts once a node of a SLURM job; it starts and minds the ranks of this node.

Which node this is and where the others are is read here, inside the step: a batch script has SLURM_NODEID 0 everywhere.
"""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dist_sketch.core.errors import UserError
from dist_sketch.core.rank_logs import LOG_FOLDER_VARIABLE

FIRST_PORT, PORTS = 20_000, 12_000  # below Linux's ephemeral ports (32768-60999) and SLURM's own (60001-63000)


RANKS = "DIST_SKETCH_RANKS"  # variable: how many were started on all nodes


DEVICES = Path("/dev")


LAST_WORDS_S = 60.0  # that ranks whose launcher is gone have to save and to end


@dataclass(frozen=True, kw_only=True)
class NodePlace:
    """Where this node stands in its job step."""

    nodes: int
    node: int  # 0 ... nodes - 1
    processes: int  # of one node
    gpus: bool
    address: str  # of the first node
    port: int
    threads: int  # CPUs of a rank


def read_place(env: Mapping[str, str], processes: int | None = None) -> NodePlace:
    """Reads the place of this node from SLURM's variables of the step.

    Args:
        processes: ranks a node; None: one a GPU, or one where the job has no GPUs.

    Raises:
        UserError: there is no step, or it has several tasks a node. There is no default: ranks that do not find each
            other would each train alone.
    """

    def number(name: str) -> int:
        if not env.get(name, "").isdigit():
            raise UserError(
                f"{name} is {env.get(name) or 'not set'}: `dist-sketch node` is started by srun, one task a node "
                "(slurm/train.sbatch); without SLURM use `accelerate launch -m dist_sketch ...`"
            )
        return int(env[name])

    nodes, node, job = number("SLURM_STEP_NUM_NODES"), number("SLURM_NODEID"), number("SLURM_JOB_ID")
    tasks = number("SLURM_STEP_NUM_TASKS")
    if tasks != nodes:
        raise UserError(f"srun started {tasks} tasks on {nodes} node(s): each node needs one, srun --ntasks-per-node=1")
    if not env.get("SLURM_STEP_NODELIST"):
        raise UserError("SLURM_STEP_NODELIST is not set: where is the first node?")
    gpus = 0 if env.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") else _gpus(env)
    processes = processes or gpus or 1
    cpus = env.get("SLURM_CPUS_PER_TASK") or env.get("SLURM_CPUS_ON_NODE") or "1"
    return NodePlace(
        nodes=nodes,
        node=node,
        processes=processes,
        gpus=gpus > 0,
        address=first_host(env["SLURM_STEP_NODELIST"]),
        port=port(job),
        threads=max(1, int(cpus) // processes),
    )


def _gpus(env: Mapping[str, str]) -> int:
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    if visible and visible != "NoDevFiles":
        return len(visible.split(","))
    on_node = env.get("SLURM_GPUS_ON_NODE", "")
    if on_node.isdigit():
        return int(on_node)
    there = len(list(DEVICES.glob("nvidia[0-9]*")))
    if there and not visible and "ACCELERATE_USE_CPU" not in env:
        raise UserError(
            f"{socket.gethostname()} has {there} GPU(s), but SLURM gave this job none: --gpus-per-node={there}; where "
            "SLURM knows nothing of them, export CUDA_VISIBLE_DEVICES; to use CPUs, export ACCELERATE_USE_CPU=true"
        )
    return 0


def port(job: int) -> int:
    """Where the ranks of a job meet: two jobs whose ids lie less than 12,000 apart never share one on a node."""
    return FIRST_PORT + job % PORTS


def first_host(names: str) -> str:
    """The first name of a SLURM node list: node[08-11,15],login -> node08."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", names)
    if not first:
        raise UserError(f"SLURM_STEP_NODELIST is {names!r}: not a list of nodes")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def command(place: NodePlace, words: tuple[str, ...]) -> list[str]:
    """The command line that starts this node's ranks of `dist-sketch WORDS...`."""
    program = ["-m", "dist_sketch", *words]
    ranks = place.nodes * place.processes
    if ranks == 1:
        return [sys.executable, *program]
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),  # means: distributed, on CPUs too
        *(
            "--num_machines",
            str(place.nodes),
            "--machine_rank",
            str(place.node),
            "--num_processes",
            str(ranks),
        ),
        *("--main_process_ip", place.address, "--main_process_port", str(place.port)),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        *program,
    ]


def variables(place: NodePlace, folder: Path | None, env: Mapping[str, str]) -> dict[str, str]:
    """The environment of this node's ranks."""
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # or torch warns that it cannot look up the name behind each connection
    found = {
        "OMP_NUM_THREADS": str(place.threads),
        **quiet,
        **env,
        RANKS: str(place.nodes * place.processes),
    }
    if not place.gpus and place.nodes * place.processes > 1:
        found["ACCELERATE_USE_CPU"] = "true"  # without it each rank would be rank 0 of 1
    if folder:
        found[LOG_FOLDER_VARIABLE] = str(folder)
    return found


class NodeRanks:
    """A launcher and its ranks: hands signals on to the ranks, and what they print to `sinks`.

    SLURM signals only the first process of a task, this one. A launcher would die of SIGUSR2, and would give its
    ranks half a minute after SIGTERM: so the launcher ignores the one and never sees the other.
    """

    def __init__(self, command: list[str], env: Mapping[str, str], sinks: list[IO[bytes]], *, launcher: bool):
        self._launcher, self._sinks = launcher, sinks
        self._process: subprocess.Popen[bytes] | None = None
        signal.signal(signal.SIGTERM, self._hand_on)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # is inherited; each rank listens as soon as it can
        self._process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        signal.signal(signal.SIGUSR2, self._hand_on)

    def _hand_on(self, number: int, frame: Any) -> None:
        if self._process is None:
            sys.exit(128 + number)
        ranks = children(self._process.pid) if self._launcher else [self._process.pid]
        if number == signal.SIGTERM:  # one that has no ranks yet has nothing to save
            ranks = ranks or [self._process.pid]
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self) -> int:
        """Copies what is printed until all have ended; returns the launcher's exit code."""
        assert self._process is not None
        assert self._process.stdout is not None
        ended_at, out = float("inf"), self._process.stdout.fileno()
        while time.monotonic() - ended_at < LAST_WORDS_S:
            if select.select([out], [], [], 1.0)[0]:
                data = os.read(out, 65536)
                if not data:
                    break
                for sink in self._sinks:
                    with suppress(OSError):  # a full disk, a reader that is gone: the ranks need not fail of it
                        sink.write(data)
                        sink.flush()
            elif self._process.poll() is not None:
                ended_at = min(ended_at, time.monotonic())
        code = self._process.wait()
        return code if code >= 0 else 128 - code


def leave_on_signal(number: int, frame: Any) -> None:
    """A signal handler that ends this process."""
    sys.exit(128 + number)


def children(parent: int) -> list[int]:
    """The processes that `parent` has started and that still live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, its_parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
            if int(its_parent) == parent and state != "Z":
                found.append(int(stat.parent.name))
    return found


def check_port(number: int) -> None:
    """Fails on the first node, with a word, if something else has the port.

    Raises:
        UserError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one of an earlier leg may linger
        try:
            probe.bind(("", number))
        except OSError as e:
            raise UserError(f"port {number} of {socket.gethostname()} is taken ({e.strerror}); choose --port N") from e
