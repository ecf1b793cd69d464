"""Functions of a test file, run on several processes that work together (gloo, CPU)."""

import importlib
import os
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dist_sketch.core.errors import UserError
from dist_sketch.core.ranks import Ranks, leave
from support import forks

TIMEOUT_S = 300
Result = dict[str, Any]
Child = Callable[[Ranks], Result]


def start(
    world: int, child: Child, out: Path, timeout_s: float = TIMEOUT_S, **env: str
) -> list[subprocess.CompletedProcess[str]]:
    """Runs `child` on `world` ranks; kills them all when one hangs.

    Raises:
        subprocess.TimeoutExpired: they hung.
    """
    call = ("support.ranked", "run_child", child.__module__, child.__name__, out)
    prints = [(out / f"{child.__name__}-{rank}.out", out / f"{child.__name__}-{rank}.err") for rank in range(world)]
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true", **env}
    pids = [
        forks.fork(files, call=call, env={**variables, **place})
        for files, place in zip(prints, forks.places(world), strict=True)
    ]
    deadline = time.monotonic() + timeout_s
    try:
        codes = [forks.wait(pid, deadline - time.monotonic()) for pid in pids]
    finally:
        for pid in pids:
            forks.kill(pid)
    return [
        subprocess.CompletedProcess(call, code, *(file.read_text(encoding="utf-8") for file in files))
        for code, files in zip(codes, prints, strict=True)
    ]


def run_child(module: str, child: str, out: str) -> None:
    """In a child: calls its function and saves what it returns."""
    warnings.simplefilter("error", FutureWarning)
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
