"""Which code and which package versions produced a result."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from dist_sketch import __version__


def versions() -> dict[str, str]:
    """Versions of the packages that decide what is computed."""
    names = ("dist-sketch", "torch", "torchvision", "accelerate", "webdataset", "pillow", "scikit-image")
    return {n: version(n) for n in names} | {"cuda": torch.version.cuda or ""}


def revision() -> str:
    """The commit of this checkout, with "+dirty" if tracked files differ; without a checkout the package's version."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != package.parent:  # another project's checkout
            return __version__
        return git("rev-parse", "HEAD") + "+dirty" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return __version__
