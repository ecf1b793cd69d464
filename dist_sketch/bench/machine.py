"""What machine the figures were measured on."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")


PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "scipy", "pillow", "pytorch-fid", "dist-sketch")


def rss() -> tuple[int, int]:
    """Resident memory of this process, bytes: now, and at its peak. (ru_maxrss would count the parent's.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
    return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    from dist_sketch.core.precision import resolve_precision

    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = set((found.get("flags") or found.get("Features") or "").split())
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    return {
        "cpu": found.get("model name", platform.processor() or platform.machine()),
        "cores": len(cores()),
        "threads": torch.get_num_threads(),
        "flags": [f for f in CPU_FLAGS if f in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name(0) if gpu else None,
        "gpus": torch.cuda.device_count() if gpu else 0,
        "precision": resolve_precision("auto", device),
        "load_per_core": round(os.getloadavg()[0] / (os.cpu_count() or 1), 2),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
