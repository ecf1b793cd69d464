"""From a drawn picture to its files: noise removal and encoding, in processes so that the drawing goes on meanwhile."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_sketch.core import fileio
from dist_sketch.core.config import DenoiseConfig
from dist_sketch.core.errors import UserError
from dist_sketch.core.signals import signal_on_parent_s_death
from dist_sketch.data import pixels
from dist_sketch.data.sources import InputImage
from dist_sketch.inference.denoise import denoise

Pixels = NDArray[np.uint8]  # (C, H, W)


MOST_WORKERS = 16


@dataclass(frozen=True, kw_only=True)
class Postprocess:
    """What becomes of a drawn picture, and where.

    Args:
        output_px: width and height of raw/ and sketch/; None: the source's own.
    """

    out: Path
    denoise: DenoiseConfig
    format: str
    output_px: int | None

    def __call__(
        self, name: str, source_size: tuple[int, int], line: Pixels, sketch: Pixels | None, raw: Pixels
    ) -> Pixels:
        """Writes raw/, sketch/, line/ and real/ of one input; returns the picture without its noise, as `raw`."""
        drawn = torch.from_numpy(raw)
        clean = denoise(drawn, self.denoise)
        gray = self.denoise.gray and self.format == "png"  # three equal planes are one
        width, height = source_size if self.output_px is None else (self.output_px, self.output_px)
        for folder, image in (("raw", drawn), ("sketch", clean[:1] if gray else clean)):
            data = pixels.encode(pixels.resize(image, height, width), self.format)
            fileio.write_atomic(self.out / folder / f"{name}.{self.format}", data, durable=False)
        for folder, kept in (("line", line), ("real", sketch)):
            if kept is not None:
                data = pixels.encode(torch.from_numpy(kept))
                fileio.write_atomic(self.out / folder / f"{name}.png", data, durable=False)
        return clean.numpy()


class PostprocessPool:
    """Processes that finish pictures. Make it before CUDA and the process group: the processes are forks of this one.

    Args:
        workers: how many; 0: the work is done where its result is asked for; None: this node's cores over its ranks.
    """

    def __init__(self, workers: int | None):
        if workers is None:
            ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            workers = min(MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) // ranks))
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            # Forked: they start at once, where a fresh process would import torch for seconds
            self._pool = ProcessPoolExecutor(workers, get_context("fork"), _begin)
            self._pool.submit(os.getpid).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def start(self, finish: Postprocess, items: list[InputImage], raw: list[Tensor]) -> Iterator[Tensor]:
        """Hands uint8 pictures (C, H, W) out to be finished; the results come in order, without their noise.

        Raises:
            UserError: a file cannot be written, or a process was killed; when the result is asked for.
        """
        # Arrays: torch would send each tensor as a file of shared memory
        lines = [i.line.numpy() for i in items]
        sketches = [None if i.sketch is None else i.sketch.numpy() for i in items]
        names, sizes = [i.name for i in items], [i.source_size for i in items]
        start: Callable[..., Iterator[Pixels]] = map if self._pool is None else self._pool.map
        with _explained(finish.out):
            results = start(finish, names, sizes, lines, sketches, [r.numpy() for r in raw])
        return self._results(finish.out, results)

    @staticmethod
    def _results(out: Path, results: Iterator[Pixels]) -> Iterator[Tensor]:
        with _explained(out):
            for clean in results:
                yield torch.from_numpy(clean)


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as e:
        raise UserError(f"{out}: a process that writes there was killed (out of memory?); try fewer --workers") from e


def _begin(*_: Any) -> None:
    """Of a process: one thread, no word at Ctrl-C, and an end when the drawing process is killed."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by it the pool ends what is left after one was killed
    signal_on_parent_s_death(signal.SIGKILL)
