"""How long a training step waits for shards at an address, beside shards on the disk, in turn.

    OMP_NUM_THREADS=1 PYTHONPATH=tests python tests/bench/remote.py SHARDS --latency-ms 50 --step-ms 300 --workers 2

A web server on the loopback answers each request after the latency. Nothing is kept in memory or on the disk.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from support.range_server import serving

from dist_sketch.core.config import DataConfig
from dist_sketch.core.places import Place, place
from dist_sketch.data.loader import Batch, Loader
from dist_sketch.data.shards import Shards
from dist_sketch.data.store import Access


def main() -> None:
    """Prints the share of the time that is spent waiting, of each round, and the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--step-ms", type=float, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with serving(options.shards) as server:
        streams = {"disk": stream(options.shards, options), "address": stream(place(server.address), options)}
        server.delay_s = options.latency_ms / 1000
        shares: dict[str, list[float]] = {name: [] for name in streams}
        for _ in range(options.rounds):
            for name, batches in streams.items():
                shares[name].append(100 * waited(batches, options.steps, options.step_ms / 1000))
        for name, found in shares.items():
            print(f"{name}: waits {median(found):.2f} % of the time ({', '.join(f'{s:.2f}' for s in found)})")


def stream(shards: Place, options: argparse.Namespace) -> Iterator[Batch]:
    """Batches without end."""
    read = Shards(shards, "train", Access(cache_mb=0))
    data = DataConfig(batch_size=options.batch_size, workers=options.workers, memory_mb=0)
    loader = Loader(read, data, seed=0, rank=0, world_size=1)
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def waited(batches: Iterator[Batch], steps: int, step_s: float) -> float:
    """The share of the time that `steps` steps wait; the first three are not counted."""
    for _ in range(3):
        next(batches)
        time.sleep(step_s)
    total, began = 0.0, time.perf_counter()
    for _ in range(steps):
        since = time.perf_counter()
        next(batches)
        total += time.perf_counter() - since
        time.sleep(step_s)  # stands for the step of a GPU
    return total / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
