"""From a drawing to its files: noise removal and encoding, in worker processes while the next batch is drawn."""

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
from dist_sketch.data.shards import Sample
from dist_sketch.inference.denoise import denoise

Pixels = NDArray[np.uint8]  # (C, H, W)
MOST_WORKERS = 16


@dataclass(frozen=True, kw_only=True)
class Postprocess:
    """Noise removal and writing of one drawing; settings only, so that it can be sent to a worker.

    Args:
        output_px: width and height of raw/ and sketch/; None: those of the source.
    """

    out: Path
    denoise: DenoiseConfig
    format: str
    output_px: int | None

    def __call__(
        self, name: str, source_size: tuple[int, int], line: Pixels, sketch: Pixels | None, raw: Pixels
    ) -> Pixels:
        """Writes raw/, sketch/, line/ and real/ of one input; returns the drawing without noise, shaped like `raw`."""
        drawn = torch.from_numpy(raw)
        clean = denoise(drawn, self.denoise)
        gray = self.denoise.gray and self.format == "png"  # of three equal planes one is enough
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
    """Worker processes for `Postprocess`. They are forks, so make the pool before CUDA and the process group.

    Args:
        workers: their number; 0: the work is done in this process; None: the node's cores divided by its ranks.
    """

    def __init__(self, workers: int | None):
        if workers is None:
            ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            workers = min(MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) // ranks))
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            # Forked, because a fresh process would need seconds to import torch
            self._pool = ProcessPoolExecutor(workers, get_context("fork"), _begin)
            self._pool.submit(os.getpid).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def start(self, finish: Postprocess, items: list[Sample], raw: list[Tensor]) -> Iterator[Tensor]:
        """Starts the work on uint8 drawings (C, H, W); returns an iterator over the drawings without noise, in order.

        Raises:
            UserError: a file cannot be written, or a worker was killed; raised when a result is read.
        """
        # Sent as arrays, because torch would send each tensor through a file in shared memory
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
    """Worker set-up: one thread, ignore Ctrl-C, end with the parent."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the pool uses it to end the others after one worker was killed
    signal_on_parent_s_death(signal.SIGKILL)
