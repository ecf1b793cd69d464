"""Arithmetic: which precision a device computes fast, and how to compute in full float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Both functions change torch's older switches (allow_tf32, float32_matmul_precision) together with the newer one
# (fp32_precision). The kernels obey the newer one; torch.export raises an error where the older ones disagree with it.


def exact_float32() -> None:
    """Makes float32 mean float32 in this whole process, for convolutions and matrix products.

    Without this cuDNN rounds the inputs of float32 convolutions to TF32 (10 bits of mantissa). Matrix products are
    rounded likewise where TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is set, as it is in NVIDIA's containers.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """True float32 inside the block: no autocast, no TF32, and always the same algorithms; then all is as before."""
    matmul = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False, fp32_precision="ieee")
    with torch.autocast(device.type, enabled=False), cudnn:
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(wanted: str, device: torch.device) -> str:
    """The arithmetic that "auto" means on `device`: bf16 where it is fast, else "no" (float32)."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "no"
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and fast else "no"
