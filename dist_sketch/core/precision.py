"""Arithmetic: which precision a device computes fast, and how to draw in full float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """True float32 inside the block: no autocast, and no TF32, which cuDNN uses for float32 by default."""
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False, fp32_precision="ieee")
    with torch.autocast(device.type, enabled=False), exact:
        yield


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(wanted: str, device: torch.device) -> str:
    """The arithmetic that "auto" means on `device`: bf16 where it is fast, else "no" (float32)."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "no"
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and fast else "no"
