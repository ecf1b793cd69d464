"""What most test files share: small data sets, and the command line as a user calls it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from PIL import Image

# One thread per process, because the suite runs in parallel and floating-point sums must keep their order.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "disabled"  # except in tests that are about it
os.environ.setdefault("WANDB_SILENT", "true")

import torch
from support import forks

torch.set_num_threads(1)
# A shell that starts the suite in the background lets it ignore Ctrl-C, and all processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The files that take longest begin first; otherwise one of them would still run when all others are done.
LONGEST = (
    *("cluster", "bench", "faults_ranks", "faults", "wandb_faults", "infer", "page", "experiment", "ranks", "loop"),
    *("every_sample_once", "command_line", "interrupts", "wandb_flow", "wheel", "compare", "node_launcher"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


Run = Callable[..., subprocess.CompletedProcess[str]]


def face(seed: int, size: int = 80) -> tuple[Image.Image, Image.Image]:
    """A small line drawing and its 'sketch': the same strokes, softer, on toned paper."""
    rng = np.random.default_rng(seed)
    line = np.full((size, size), 255, np.uint8)
    for _ in range(6):
        x, y = rng.integers(4, size - 20, 2)
        line[y : y + 2, x : x + 16] = 0
        line[y : y + 16, x : x + 2] = 0
    sketch = 255 - (255 - line.astype(float)) * 0.7 - rng.random((size, size)) * 20
    return Image.fromarray(line), Image.fromarray(sketch.clip(0, 255).astype(np.uint8)).convert("RGB")


def write_pairs(root: Path, train: int, val: int, size: int = 80) -> Path:
    """A source folder with numbered pairs."""
    for split, first, count in (("train", 1, train), ("val", train + 1, val)):
        for n in range(first, first + count):
            for side, image in zip(("line", "sketch"), face(n, size), strict=True):
                folder = root / f"{split}_{side}"
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"{n}.png")
    return root


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 13 training and 5 validation pairs."""
    return write_pairs(tmp_path_factory.mktemp("pairs"), 13, 5)


@pytest.fixture(scope="session")
def shards(pairs: Path) -> Path:
    """The same pairs packed at 64 px, five to a shard."""
    from dist_sketch.data import pack, recipe

    out = pairs.parent / "shards"
    pack.pack(recipe.load(str(pairs)), out, size=64, shard_count=5, workers=1)
    return out


@pytest.fixture(scope="module")
def alone() -> Iterator[Any]:
    """The `Ranks` of one process, on the CPU even if there is a GPU."""
    from dist_sketch.core.ranks import Ranks

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield Ranks(expect_world_size=1)


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs `dist-sketch ARGUMENTS` in a process of its own, which a server has forked."""

    def run(*arguments: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return forks.run(tmp_path_factory.mktemp("cli"), *arguments, cwd=cwd, env={**os.environ, **env})

    return run


@pytest.fixture(scope="session")
def new_cli() -> Run:
    """Runs `python -m dist_sketch ARGUMENTS` in a new interpreter, which takes seconds for its imports."""

    def run(*arguments: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dist_sketch", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **env}, timeout=600)

    return run


@pytest.fixture(scope="session")
def cli_ranks(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs `dist-sketch ARGUMENTS` on CPU processes that work together, without a launcher: their outputs joined."""

    def run(processes: int, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "ACCELERATE_USE_CPU": "true", **env}
        return forks.run_ranks(tmp_path_factory.mktemp("cli"), processes, *arguments, env=variables)

    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, as playwright drives it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        options = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox", "--disable-gpu"]}
        browser = driver.chromium.launch(**options)  # type: ignore[arg-type]
        yield browser
        browser.close()


def launch(processes: int, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs `accelerate launch ... -m dist_sketch ARGUMENTS` on CPU processes that work together."""
    from torch.distributed.elastic.utils.distributed import get_free_port

    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(get_free_port())]
    command += ["-m", "dist_sketch", *map(str, arguments)]
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true", **env}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=600)


hypothesis.settings.register_profile("shared", deadline=None)  # a busy machine is slow, which is no fault
hypothesis.settings.load_profile("shared")

# Quick, yet everything takes part. With the 13 training pairs of `shards` an epoch has three steps.
TINY = (
    *("--data.batch-size", 4, "--data.workers", 0, "--train.precision", "no", "--track.wandb", "off"),
    *("--track.log-interval-steps", 1, "--checkpoint.interval-steps", 2, "--train.no-validate-fid"),
)
# With a generator of 1/64 of the weights, for tests in which its size does not matter.
SMALL = (*TINY, "--generator.width", 8)
