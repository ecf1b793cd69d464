"""`dist-sketch bench loader`: pairs a second beside a folder of large JPEGs, the wait for data, the index's memory."""

import gc
import io
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from dist_sketch.bench.figures import BenchReport, figure, short
from dist_sketch.bench.machine import cores, rss
from dist_sketch.bench.options import BenchOptions
from dist_sketch.bench.paper_way import JpegFolder
from dist_sketch.bench.step import build, settings
from dist_sketch.bench.timing import Variants, alone, interleaved, rates
from dist_sketch.core import fileio
from dist_sketch.core.config import DataConfig
from dist_sketch.core.precision import resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import pack, pixels, recipe
from dist_sketch.data.loader import Loader
from dist_sketch.data.manifest import FORMAT, MANIFEST
from dist_sketch.data.shards import Shards
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.training.policy import BOTH
from dist_sketch.training.step import Step

NAME = "loader"


LARGE_SET = 32  # how often the few pairs are listed, so that an epoch has the length of a real one


PASSES = 8  # over the pairs in memory: one would be too short to measure


WAIT_ROUNDS = 3


Halves = tuple[Tensor, Tensor]


class Sources(NamedTuple):
    """The same pairs twice."""

    jpegs: Path
    shards: Path


def make(options: BenchOptions, folder: Path) -> Sources:
    """Draws pairs as large JPEGs, and packs them."""
    sources = Sources(folder / "jpegs", folder / "shards")
    synth.write(sources.jpegs, count=options.pairs, val=0, size=options.source_size)
    pack.pack(recipe.load(str(sources.jpegs)), sources.shards, size=options.size)
    return sources


def run(report: BenchReport, folder: Path) -> None:
    """All figures of the loader."""
    sources = make(report.options, folder)
    per_core(report, sources)
    _workers(report, sources)
    _wait(report, sources)
    _index(report)
    report.note(NAME, f"JPEG folder: {report.options.source_size} px, decoded and resized by Pillow on every reading")
    report.note(NAME, "a core's second: of CPU time, in one process without workers")


def per_core(report: BenchReport, sources: Sources) -> None:
    """Pairs a second of CPU time, everything in this process."""
    options, before = report.options, torch.get_num_threads()
    count = options.pairs // options.batch_size * options.batch_size
    folder = _folder(sources.jpegs, options, 0)
    streaming = _loader(sources.shards, options, workers=0, memory_mb=0.0)
    in_memory = _loader(sources.shards, options, workers=0, memory_mb=DataConfig.memory_mb)
    images = _images(sources.shards)[: 2 * count]
    variants: dict[str, Callable[[], object]] = {
        "folder": lambda: list(folder),
        "streaming": lambda: list(streaming.epoch(0)),
        "memory": lambda: [list(in_memory.epoch(i)) for i in range(PASSES)],
        "decode": lambda: _decode(images),
    }
    torch.set_num_threads(1)
    try:
        # two warm rounds: in the first epochs pairs are still decoded, each once
        times = interleaved(variants, options, warm=2, clock=time.process_time)
    finally:
        torch.set_num_threads(before)
    baseline, unit, about = rates(times["folder"], count), "pairs/core s", "JPEG folder"
    stream = rates(times["streaming"], count)
    limit = "limit: decoding the PNGs alone"
    report.add(
        figure(NAME, "streaming from shards", stream, baseline, unit=unit, baseline_name=about),
        figure(
            NAME, "decoded in memory", rates(times["memory"], count * PASSES), baseline, unit=unit, baseline_name=about
        ),
        figure(NAME, "streaming: share", stream, rates(times["decode"], count), unit=unit, baseline_name=limit),
    )


def _folder(root: Path, options: BenchOptions, workers: int) -> Any:
    """The way of every tutorial."""
    return DataLoader(
        JpegFolder(root, options.size),
        options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )


def _loader(shards: Path, options: BenchOptions, *, workers: int, memory_mb: float, times: int = 1) -> Loader:
    """Ours, over the pairs listed `times` times."""
    opened = Shards(shards, "train")
    for column in ("keys", "_shard", "_offset", "_length", "_sha256"):
        values = getattr(opened, column)
        setattr(opened, column, np.concatenate([values] * times))
    data = DataConfig(batch_size=options.batch_size, workers=workers, memory_mb=memory_mb)
    return Loader(opened, data, seed=0, rank=0, world_size=1, pin=torch.cuda.is_available())


def _images(shards: Path) -> list[bytes]:
    """The packed PNG files, both halves."""
    import tarfile

    found = []
    for file in sorted(shards.glob("train-*.tar")):
        with tarfile.open(file) as tar:
            found += [tar.extractfile(m).read() for m in tar if m.name.endswith(".png")]  # type: ignore[union-attr]
    return found


def _decode(files: list[bytes]) -> None:
    for data in files:
        with Image.open(io.BytesIO(data)) as image:
            image.load()


def _workers(report: BenchReport, sources: Sources) -> None:
    """Pairs a second by the clock, over the number of worker processes."""
    options = report.options
    count = options.pairs // options.batch_size * options.batch_size
    large = options.pairs * LARGE_SET // options.batch_size * options.batch_size
    for workers in range(1, (options.workers or min(8, len(cores()))) + 1):
        folder = _folder(sources.jpegs, options, workers)
        loader = _loader(sources.shards, options, workers=workers, memory_mb=0.0, times=LARGE_SET)
        variants: Variants = {"folder": partial(list, folder), "ours": partial(_epoch, loader)}
        times = interleaved(variants, options)
        report.add(
            figure(
                NAME,
                f"streaming, {workers} worker(s)",
                rates(times["ours"], large),
                rates(times["folder"], count),
                unit="pairs/s",
                baseline_name=f"JPEG folder, {workers} worker(s)",
            )
        )
        del variants, folder, loader  # ends their workers


def _epoch(loader: Loader) -> None:
    for _ in loader.epoch(0):
        pass


def _forever(loader: Loader) -> Iterator[Halves]:
    for epoch in itertools.count():
        for batch in loader.epoch(epoch):
            yield batch.line, batch.sketch


def _wait(report: BenchReport, sources: Sources) -> None:
    """How much of a training loop's time goes by in waiting for data."""
    options, ranks = report.options, Ranks(expect_world_size=1)
    workers = min(8, len(cores())) if ranks.device.type == "cuda" else 1
    step = build(settings(options.batch_size), ranks, resolve_precision("auto", ranks.device))
    folder = _folder(sources.jpegs, options, workers)
    streams: dict[str, Iterator[Any]] = {
        "folder": itertools.chain.from_iterable(itertools.repeat(folder)),
        "streaming": _forever(_loader(sources.shards, options, workers=workers, memory_mb=0.0)),
        "memory": _forever(_loader(sources.shards, options, workers=workers, memory_mb=DataConfig.memory_mb)),
    }
    for _ in range(2 * options.pairs // options.batch_size):
        next(streams["memory"])  # until each pair is decoded
    count = 2 if options.quick else 4 * (options.steps or (20 if ranks.device.type == "cuda" else 1))
    rounds = min(options.repeats, WAIT_ROUNDS)
    shares: dict[str, list[float]] = {name: [] for name in streams}
    speeds: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(rounds):
        for name, stream in streams.items():
            share, seconds = _train(stream, step, count)
            shares[name].append(100 * share)
            speeds[name].append(count * options.batch_size / seconds)
    about = f"JPEG folder, {workers} worker(s)"
    for name, text in (("streaming", "streaming"), ("memory", "decoded in memory")):
        head = f"training, {workers} worker(s), {text}"
        baseline = speeds["folder"]
        report.add(
            figure(
                NAME,
                f"{head}: wait for data",
                shares[name],
                shares["folder"],
                unit="% of time",
                baseline_name=about,
                lower_is_better=True,
            ),
            figure(NAME, f"{head}: speed", speeds[name], baseline, unit="images/s", baseline_name=about),
        )


def _train(stream: Iterator[Halves], step: Step, count: int) -> tuple[float, float]:
    """Share of the time in which the step had to wait for its pairs, and the seconds of all."""
    device = step.ranks.device
    for _ in range(3):
        next(stream)  # what the workers had made while another variant ran
    waited, started = 0.0, time.perf_counter()
    for _ in range(count):
        since = time.perf_counter()
        halves = next(stream)
        waited += time.perf_counter() - since
        line, sketch = (pixels.to_float(h.to(device, non_blocking=True)) for h in halves)
        # The host waits for each step, so that its wait for data is a wait of the device, too.
        step(line, sketch, BOTH, bad=0, stop=False).reduced.cpu()
    seconds = time.perf_counter() - started
    return waited / seconds, seconds


def _index(report: BenchReport) -> None:
    """Memory of an opened index: measured in a process of its own, so that the interpreter's own does not count."""
    count = report.options.index
    (found,) = alone(_measure_index, [count])
    report.add(
        figure(
            NAME,
            f"index of {count:,} pairs",
            found["arrays"] / count,
            found["objects"] / count,
            unit="bytes/pair",
            baseline_name="the manifest's columns as Python lists",
            lower_is_better=True,
        )
    )
    report.note(
        NAME,
        f"index of {count:,} pairs: {found['arrays'] / 1e6:.1f} MB in arrays, {found['resident'] / 1e6:.0f} MB more "
        f"resident than before; while it is read ({short(found['seconds'])} s) up to {found['peak'] / 1e6:.0f} MB",
    )


def _measure_index(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_manifest(folder, count)
        gc.collect()
        before = rss()[0]
        columns = json.loads((folder / MANIFEST).read_bytes())["splits"]["train"]["index"]
        objects = rss()[0] - before
        del columns
        gc.collect()
        before, started = rss()[0], time.perf_counter()
        shards = Shards(folder, "train")
        seconds = time.perf_counter() - started
        gc.collect()
        now, peak = rss()
        arrays = sum(v.nbytes for v in vars(shards).values() if isinstance(v, np.ndarray))
        return {
            "objects": max(objects, 1),
            "arrays": arrays,
            "resident": now - before,
            "peak": peak - before,
            "seconds": seconds,
        }


def _write_manifest(folder: Path, count: int) -> None:
    """A manifest of `count` pairs; there are no shards."""
    in_shard, length = 10_000, 102_400
    files = [
        {"file": f"train-{i:06d}.tar", "bytes": n * length, "sha256": "0" * 64, "count": n}
        for i in range(-(-count // in_shard))
        for n in (min(in_shard, count - i * in_shard),)
    ]
    index = {
        "key": [f"{i:07d}" for i in range(count)],
        "shard": [i // in_shard for i in range(count)],
        "offset": [i % in_shard * length for i in range(count)],
        "length": [length] * count,
        "sha256": [os.urandom(32).hex() for _ in range(count)],
    }
    split = {"count": count, "has_sketch": True, "shards": files, "index": index}
    text = json.dumps({"format": FORMAT, "size": 256, "splits": {"train": split}})
    fileio.write_atomic(folder / MANIFEST, text, durable=False)
