"""From a drawing to its files: noise removal and encoding, in worker processes while the next batch is drawn."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dist_sketch.core import cpus, fileio, launcher
from dist_sketch.core.config import DenoiseConfig
from dist_sketch.core.workers import workers as processes
from dist_sketch.data import fit, pixels
from dist_sketch.data.manifest import Fit
from dist_sketch.data.shards import Sample
from dist_sketch.model.denoise import denoise

Pixels = NDArray[np.uint8]  # (C, H, W)
WorkerMap = Callable[..., Iterator[Pixels]]
MOST_WORKERS = 16
FEW = 16  # pictures that one process finishes about as soon as it would have started others


@dataclass(frozen=True, kw_only=True)
class Postprocess:
    """Noise removal and writing of one drawing; settings only, so that it can be sent to a worker."""

    out: Path
    denoise: DenoiseConfig
    format: str
    output_px: int | None  # of the long side of raw/ and sketch/; None: the source's width and height
    fit: Fit = "squash"

    def __call__(
        self, name: str, source_size: tuple[int, int], line: Pixels, sketch: Pixels | None, raw: Pixels
    ) -> Pixels:
        """Writes raw/, sketch/, line/ and real/ of one input; returns the drawing without noise, shaped like `raw`.

        The files have the page's shape if it was padded to a square.
        """
        drawn = torch.from_numpy(raw)
        clean = denoise(drawn, self.denoise)
        gray = self.denoise.gray and self.format == "png"  # of three equal planes one is enough
        width, height = fit.shape(source_size, self.output_px, self.fit)
        for folder, image in (("raw", drawn), ("sketch", clean[:1] if gray else clean)):
            data = pixels.encode(pixels.resize(fit.cut(image, source_size, self.fit), height, width), self.format)
            fileio.write_atomic(self.out / folder / f"{name}.{self.format}", data, durable=False)
        for folder, kept in (("line", line), ("real", sketch)):
            if kept is not None:
                data = pixels.encode(fit.cut(torch.from_numpy(kept), source_size, self.fit))
                fileio.write_atomic(self.out / folder / f"{name}.png", data, durable=False)
        return clean.numpy()

    def start(self, run: WorkerMap, items: list[Sample], raw: list[Tensor]) -> Iterator[Tensor]:
        """Starts the work on uint8 drawings (C, H, W), with what `worker_map` yields.

        Returns:
            The drawings without noise, in order. Reading one raises UserError if a file cannot be written.
        """
        # Sent as arrays, because torch would send each tensor through a file in shared memory
        lines = [i.line.numpy() for i in items]
        sketches = [None if i.sketch is None else i.sketch.numpy() for i in items]
        names, sizes = [i.name for i in items], [i.source_size for i in items]
        return map(torch.from_numpy, run(self, names, sizes, lines, sketches, [r.numpy() for r in raw]))


@contextmanager
def worker_map(workers: int | None, pictures: int | None = None) -> Iterator[WorkerMap]:
    """Yields a function like `map` that works in forked processes; to be started before CUDA and the process group.

    Args:
        workers: their number; 0: the work is done in this process; None: as many as the node's cores divided by its
            ranks, or none for few pictures.
        pictures: how many all ranks together will draw; None: many.

    Raises:
        UserError: the workers cannot be started, or one was killed.
    """
    if workers is None:
        ranks = max(1, launcher.number("LOCAL_WORLD_SIZE", 1))
        few = pictures is not None and pictures <= FEW * launcher.number("WORLD_SIZE", 1)
        workers = 0 if few else min(MOST_WORKERS, max(1, len(cpus.usable()) // ranks))
    if workers == 0:
        yield map
        return
    # Forked, because a fresh process would need seconds to import torch
    with processes(workers, "fork", "--workers 0", partial(torch.set_num_threads, 1)) as pool:
        yield pool.map
