"""Float32 is float32: torch's switches for TF32, which only GPUs obey, can be read on any machine."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from dist_sketch.core.precision import exact_float32, full_float32

CPU = torch.device("cpu")


def switches() -> dict[str, object]:
    """What the kernels obey, and the older switches; reading the latter fails where both disagree."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    newer = {"conv": cudnn.conv.fp32_precision, "all": cudnn.fp32_precision, "matmul": matmul.fp32_precision}
    older = {"cudnn": cudnn.allow_tf32, "cublas": matmul.allow_tf32, "word": torch.get_float32_matmul_precision()}
    return {**newer, **older, "deterministic": cudnn.deterministic}


EXACT = {"conv": "ieee", "all": "ieee", "matmul": "ieee", "cudnn": False, "cublas": False, "word": "highest"}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """torch's own settings, before and after each test."""
    defaults()
    yield
    defaults()


def defaults() -> None:
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("word", ["highest", "high", "medium"])
def test_full_float32_is_neither_halved_nor_tf32_and_leaves_all_as_it_was(word: str) -> None:
    torch.set_float32_matmul_precision(word)
    x, before = torch.ones(2, 2), switches()
    assert before["conv"] == "tf32"  # torch's default
    assert before["matmul"] == ("ieee" if word == "highest" else "tf32")
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_float32(CPU):
            assert (x @ x).dtype == torch.float32
            assert switches() == EXACT | {"deterministic": True}
            with full_float32(CPU):
                pass
            assert switches() == EXACT | {"deterministic": True}
    assert switches() == before
    with pytest.raises(ZeroDivisionError), full_float32(CPU):
        _ = 1 / 0
    assert switches() == before


def test_exact_float32_holds_for_the_whole_process() -> None:
    torch.set_float32_matmul_precision("high")
    exact_float32()
    assert switches() == EXACT | {"deterministic": False}
    with full_float32(CPU):
        pass
    assert switches() == EXACT | {"deterministic": False}
    net = torch.nn.Conv2d(1, 1, 1)
    torch.export.export(net, (torch.ones(1, 1, 2, 2),))  # it would fail where the older switches disagree


def test_the_variable_of_nvidia_s_containers_is_overruled() -> None:
    code = """
import warnings; warnings.simplefilter("error")
import torch
from dist_sketch.core.precision import exact_float32, full_float32
matmul = torch.backends.cuda.matmul
print(matmul.fp32_precision, matmul.allow_tf32)
with full_float32(torch.device("cpu")):
    print(matmul.fp32_precision, matmul.allow_tf32)
print(matmul.fp32_precision, matmul.allow_tf32)
exact_float32()
print(matmul.fp32_precision, matmul.allow_tf32)
"""
    env = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["tf32 True", "ieee False", "tf32 True", "ieee False"], done.stderr
    assert "Warning" not in done.stderr
