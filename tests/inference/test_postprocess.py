"""Pictures are finished by worker processes: the same files in the same order, and an end if a process dies."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.forks import wait_until
from support.jobs import children

from dist_sketch.core.config import DenoiseConfig
from dist_sketch.core.errors import UserError
from dist_sketch.data import pixels
from dist_sketch.data.shards import Sample
from dist_sketch.inference.infer import _behind
from dist_sketch.inference.postprocess import Postprocess, worker_map
from dist_sketch.model.denoise import denoise

SIZE = 32


def items(count: int, sketch: bool = True) -> tuple[list[Sample], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    found = [Sample(f"face {i}", a, b if sketch else None, (40, 20)) for i, (a, b, _) in enumerate(images)]
    return found, [c for _, _, c in images]


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def run(
    out: Path, workers: int, format: str = "png", output_px: int | None = SIZE, gray: bool = True
) -> list[torch.Tensor]:
    finish = Postprocess(out=out, denoise=DenoiseConfig(gray=gray), format=format, output_px=output_px)
    with worker_map(workers) as run_in_workers:
        return list(finish.start(run_in_workers, *items(7)))


@pytest.mark.parametrize("format", ["png", "jpg"])
def test_processes_write_what_one_writes_and_answer_in_order(tmp_path: Path, format: str) -> None:
    one, two = (run(tmp_path / str(workers), workers, format) for workers in (0, 2))
    assert files(tmp_path / "0") == files(tmp_path / "2")
    assert len(files(tmp_path / "0")) == 4 * 7
    for a, b, raw in zip(one, two, items(7)[1], strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, denoise(raw, DenoiseConfig()))


@pytest.mark.parametrize(("gray", "format", "mode"), [(True, "png", "L"), (False, "png", "RGB"), (True, "jpg", "RGB")])
def test_sizes_and_modes(tmp_path: Path, gray: bool, format: str, mode: str) -> None:
    clean = run(tmp_path, 0, format, None, gray)
    with Image.open(tmp_path / "sketch" / f"face 0.{format}") as image:
        assert (image.mode, image.size) == (mode, (40, 20))
    with Image.open(tmp_path / "line" / "face 0.png") as image:
        assert image.size == (SIZE, SIZE)
        assert torch.equal(pixels.from_image(image, 3), items(1)[0][0].line)
    run(tmp_path / "own", 0, "png", SIZE, gray)
    with Image.open(tmp_path / "own" / "sketch" / "face 0.png") as image:  # nothing is lost in gray
        assert np.array_equal(pixels.from_image(image, 3).numpy(), clean[0].numpy())


def test_what_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"raw.*cannot be written"):
        run(tmp_path, 2)


def test_a_killed_process_is_a_sentence(tmp_path: Path) -> None:
    """Also in a process that listens to SIGTERM, as one that trains does: the others must not inherit that."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with pytest.raises(UserError, match="was killed"):
            _kill_one(tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)


def _kill_one(tmp_path: Path) -> None:
    finish = Postprocess(out=tmp_path, denoise=DenoiseConfig(), format="png", output_px=SIZE)
    with worker_map(2) as run_in_workers:
        os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        for _ in range(50):
            list(finish.start(run_in_workers, *items(7)))


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_processes_end_with_the_one_that_draws() -> None:
    script = """
import time
from dist_sketch.inference.postprocess import worker_map
with worker_map(2):
    print("ready", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        workers = children(process.pid)
        assert len(workers) == 2
        process.kill()
    wait_until(lambda: not any(map(runs, workers)), "the processes end")


def test_the_next_batch_is_drawn_before_the_last_is_waited_for() -> None:
    said: list[str] = []

    def begin(i: int) -> int:
        said.append(f"drawn {i}")
        return i

    for i in _behind(map(begin, range(3))):
        said.append(f"finished {i}")
    assert said == ["drawn 0", "drawn 1", "finished 0", "drawn 2", "finished 1", "finished 2"]
    assert list(_behind(iter(()))) == []
