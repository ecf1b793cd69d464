"""Functions of a test file, run on several processes that work together (gloo, CPU)."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dist_sketch.core.errors import UserError
from dist_sketch.core.ranks import Ranks, leave
from support import python_path

TIMEOUT_S = 300
Result = dict[str, Any]
Child = Callable[[Ranks], Result]


def start(world: int, child: Child, out: Path, timeout_s: float = TIMEOUT_S, **env: str) -> list[Any]:
    """Runs `child` on `world` ranks; kills them all when one hangs. Returns each rank's CompletedProcess.

    Raises:
        subprocess.TimeoutExpired: they hung.
    """
    from torch.distributed.elastic.utils.distributed import get_free_port

    code = f"from support import ranked; ranked.run_child({child.__module__!r}, {child.__name__!r}, {str(out)!r})"
    common = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(get_free_port()),
        "PYTHONPATH": python_path(),
        **env,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error::FutureWarning", "-c", code],
            env={"WORLD_SIZE": str(world), **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    ended = []
    try:
        for process in processes:
            stdout, stderr = process.communicate(timeout=timeout_s)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return ended


def run_child(module: str, child: str, out: str) -> None:
    """In a child: calls its function and saves what it returns."""
    torch.set_num_threads(1)
    try:
        with Ranks(timeout_s=TIMEOUT_S / 2) as ranks:
            result = getattr(importlib.import_module(module), child)(ranks)
    except UserError as e:
        print(f"UserError: {e}")
        leave(2)
    torch.save(result, Path(out) / f"{child}-{ranks.rank}.pt")


def run(world: int, child: Child, out: Path, **env: str) -> list[Result]:
    """What each rank's `child` returned."""
    for process in start(world, child, out, **env):
        assert process.returncode == 0, process.stderr[-4000:]
        assert "FutureWarning" not in process.stderr
    return [torch.load(out / f"{child.__name__}-{rank}.pt") for rank in range(world)]
