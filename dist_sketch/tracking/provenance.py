"""What produced a result: versions, commit, memory."""

import os
import subprocess
from pathlib import Path

import torch

from dist_sketch import __version__


def memory_mb(device: torch.device) -> float:
    """On a GPU, the most that tensors have taken there; else what this process has in memory now (Linux; else 0)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def versions() -> dict[str, str]:
    """Versions of the packages that decide what is computed."""
    from importlib.metadata import version

    names = ("dist-sketch", "torch", "torchvision", "accelerate", "webdataset", "pillow", "scikit-image")
    return {n: version(n) for n in names} | {"cuda": torch.version.cuda or ""}


def revision() -> str:
    """The code's: the commit of the checkout that it lies in, "+dirty" if tracked files differ; else its version."""
    package = Path(__file__).resolve().parents[1]  # dist_sketch

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent:  # of somebody who installed us
            return __version__
        return git("rev-parse", "HEAD") + "+dirty" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return __version__
