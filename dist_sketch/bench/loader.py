"""`dist-sketch bench loader`: speed beside a folder of JPEGs, the time spent waiting for data, the index's memory."""

import itertools
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from dist_sketch.bench import large_set
from dist_sketch.bench.measure import BenchReport, in_new_processes, interleaved, memory, rates
from dist_sketch.bench.options import BenchOptions
from dist_sketch.bench.paper_way import JpegFolder
from dist_sketch.bench.step import Pairs, build, settings, steps_at_once
from dist_sketch.core import cpus
from dist_sketch.core.config import DataConfig
from dist_sketch.core.precision import resolve_precision
from dist_sketch.core.ranks import Ranks
from dist_sketch.data import pack, pixels, recipe
from dist_sketch.data.batches import Batches, training_batches
from dist_sketch.data.image_files import read_packed
from dist_sketch.data.index import Keys
from dist_sketch.data.loader import Loader
from dist_sketch.data.manifest import read_index, read_manifest
from dist_sketch.data.shards import Shards
from dist_sketch.data.synthetic import dataset as synth
from dist_sketch.training.policy import BOTH
from dist_sketch.training.step import Step

LARGE_SET = 32  # how often the few pairs are listed, so that an epoch is as long as a real one
PASSES = 8  # over the pairs in memory: one would be too short to measure
WAIT_ROUNDS = 3


def make(options: BenchOptions, folder: Path) -> tuple[Path, Path]:
    """Draws pairs as large JPEGs and packs them. Returns the folder of JPEGs and that of shards."""
    jpegs, shards = folder / "jpegs", folder / "shards"
    synth.write(jpegs, count=options.pairs, val=0, size=options.source_size)
    pack.pack(recipe.load(str(jpegs)), shards, size=options.size)
    return jpegs, shards


def run(report: BenchReport, folder: Path) -> None:
    """Adds all figures of the loader."""
    jpegs, shards = make(report.options, folder)
    for part in (_wait, per_core, _workers):
        part(report, jpegs, shards)
        report.write()  # a call that is cut off keeps what it has
    _index(report, folder)
    report.note(f"JPEG folder: {report.options.source_size} px, decoded and resized by Pillow at every reading")
    report.note("core s: a second of CPU time, in one process without workers")


def per_core(report: BenchReport, jpegs: Path, shards: Path) -> None:
    """Pairs per second of CPU time, with everything in this process."""
    options, threads = report.options, torch.get_num_threads()
    count = options.pairs // options.batch_size * options.batch_size
    folder = _folder(jpegs, options, 0)
    streaming = _loader(shards, options, workers=0, memory_mb=0.0)
    in_memory = _loader(shards, options, workers=0, memory_mb=DataConfig.memory_mb)
    files = _png_files(shards)[: 2 * count]
    variants: dict[str, Callable[[], object]] = {
        "folder": lambda: list(folder),
        "streaming": lambda: list(streaming.epoch(0)),
        "memory": lambda: [list(in_memory.epoch(i)) for i in range(PASSES)],
        "decode": lambda: [read_packed(file, options.size) for file in files],
    }
    torch.set_num_threads(1)
    # two warm rounds, because each pair is decoded once in the first epochs
    times = interleaved(variants, options, warm=2, clock=time.process_time)
    torch.set_num_threads(threads)
    baseline, stream, unit = rates(times["folder"], count), rates(times["streaming"], count), "pairs/core s"
    report.add("streaming from shards", stream, baseline, unit, "JPEG folder")
    report.add("decoded in memory", rates(times["memory"], count * PASSES), baseline, unit, "JPEG folder")
    report.add("streaming: share", stream, rates(times["decode"], count), unit, "limit: decoding the PNGs alone")


def _folder(root: Path, options: BenchOptions, workers: int) -> Any:
    """The usual way: a Dataset of image files in a DataLoader."""
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
    """Our loader, over the pairs listed `times` times."""
    opened = Shards(shards, "train")
    opened.keys = Keys(opened.keys.text * times)
    for column in ("shard_numbers", "offsets", "lengths", "hashes"):
        setattr(opened, column, np.concatenate([getattr(opened, column)] * times))
    data = DataConfig(batch_size=options.batch_size, workers=workers, memory_mb=memory_mb)
    return Loader(opened, data, seed=0, rank=0, world_size=1, pin=torch.cuda.is_available())


def _png_files(shards: Path) -> list[bytes]:
    """The packed PNG files of both sides."""
    found = []
    for file in sorted(shards.glob("train-*.tar")):
        with tarfile.open(file) as tar:
            found += [tar.extractfile(m).read() for m in tar if m.name.endswith(".png")]  # type: ignore[union-attr]
    return found


def _workers(report: BenchReport, jpegs: Path, shards: Path) -> None:
    """Pairs per second of wall-clock time, over the number of worker processes."""
    options = report.options
    count = options.pairs // options.batch_size * options.batch_size
    large = options.pairs * LARGE_SET // options.batch_size * options.batch_size
    for workers in range(1, (options.workers or min(8, len(cpus.usable()))) + 1):
        folder = _folder(jpegs, options, workers)
        loader = _loader(shards, options, workers=workers, memory_mb=0.0, times=LARGE_SET)
        times = interleaved({"folder": partial(list, folder), "ours": partial(_epoch, loader)}, options)
        ours, baseline = rates(times["ours"], large), rates(times["folder"], count)
        report.add(f"streaming, {workers} worker(s)", ours, baseline, "pairs/s", f"JPEG folder, {workers} worker(s)")
        del folder, loader  # ends their workers


def _epoch(loader: Loader) -> None:
    for _ in loader.epoch(0):
        pass


def _forever(batches: Batches) -> Iterator[Pairs]:
    for epoch in itertools.count():
        for batch in batches.epoch(epoch):
            yield batch.line, batch.sketch


def _wait(report: BenchReport, jpegs: Path, shards: Path) -> None:
    """The share of a training loop's time that is spent waiting for data."""
    options, ranks = report.options, Ranks(expect_world_size=1)
    workers = min(8, len(cpus.usable())) if ranks.device.type == "cuda" else 1
    about = f"JPEG folder, {workers} worker(s)"
    step = build(settings(options.batch_size), ranks, resolve_precision("auto", ranks.device))
    folder, opened = _folder(jpegs, options, workers), Shards(shards, "train")
    in_memory = f"{workers} worker(s), decoded in memory"
    limits = {f"{workers} worker(s), streaming": (0.0, 0.0), in_memory: (DataConfig.memory_mb, 0.0)}  # host, device
    if ranks.device.type == "cuda":
        limits["on the GPU"] = (0.0, DataConfig.device_memory_mb)
    streams: dict[str, Iterator[Any]] = {"JPEG folder": itertools.chain.from_iterable(itertools.repeat(folder))}
    for name, (memory_mb, device_memory_mb) in limits.items():
        data = DataConfig(
            batch_size=options.batch_size, workers=workers, memory_mb=memory_mb, device_memory_mb=device_memory_mb
        )
        streams[name] = _forever(training_batches(opened, data, ranks, seed=0))
    for _ in range(2 * options.pairs // options.batch_size):
        next(streams[in_memory])  # until each pair is decoded
    count = 2 if options.quick else 4 * steps_at_once(options, ranks.device)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in streams}
    for _ in range(min(options.repeats, WAIT_ROUNDS)):
        for name, stream in streams.items():
            found[name].append(_train(stream, step, count))
    shares = {name: [100 * waited / seconds for waited, seconds in rounds] for name, rounds in found.items()}
    speeds = {name: [count * options.batch_size / seconds for _, seconds in rounds] for name, rounds in found.items()}
    for name in limits:
        head = f"training, {name}"
        report.add(f"{head}: wait for data", shares[name], shares["JPEG folder"], "% of time", about)
        report.add(f"{head}: speed", speeds[name], speeds["JPEG folder"], "images/s", about)


def _train(stream: Iterator[Pairs], step: Step, count: int) -> tuple[float, float]:
    """Seconds in which the step waited for its pairs, and seconds of all steps."""
    device = step.ranks.device
    for _ in range(3):
        next(stream)  # made by the workers while another variant ran
    waited, started = 0.0, time.perf_counter()
    for _ in range(count):
        since = time.perf_counter()
        halves = next(stream)
        waited += time.perf_counter() - since
        line, sketch = (pixels.to_float(h.to(device, non_blocking=True)) for h in halves)
        # The host waits for each step, so that when it waits for data, the device waits as well.
        step(line, sketch, BOTH, bad=0, stop=False).reduced.cpu()
    return waited, time.perf_counter() - started


def _index(report: BenchReport, folder: Path) -> None:
    """Time and memory of opening an index, each way in a new process, whose heap has no free memory to reuse."""
    count, shards, lists = report.options.index, folder / "large", folder / "large.json"
    large_set.write(shards, count)
    rows = read_index(shards, read_manifest(shards), "train").rows()
    lists.write_text(json.dumps(list(zip(*rows, strict=True))), encoding="utf-8")
    (ours,) = in_new_processes(_open_index, [shards])
    (theirs,) = in_new_processes(_open_lists, [lists])
    name, about = f"index of {count:,} pairs", "the same as lists in a JSON file"
    report.add(name, [ours["kept"] / count], [theirs["kept"] / count], "bytes/pair", about)
    report.add(f"{name}: memory while it is opened", [ours["peak"] / 1e6], [theirs["peak"] / 1e6], "MB", about)
    report.note(f"{name}: opened and checked in {ours['seconds']:.1f} s; the lists are only parsed")


def _open_index(folder: Path) -> dict[str, float]:
    before, since = memory()[0], time.perf_counter()
    shards = Shards(folder, "train")
    seconds, peak = time.perf_counter() - since, memory()[1] - before
    arrays = sum(v.nbytes for v in vars(shards).values() if isinstance(v, np.ndarray))
    return {"kept": arrays + len(shards.keys.text) + shards.keys.ends.nbytes, "seconds": seconds, "peak": peak}


def _open_lists(file: Path) -> dict[str, float]:
    before = memory()[0]
    columns = json.loads(file.read_bytes())
    now, peak = memory()
    del columns
    return {"kept": max(now - before, 1), "peak": peak - before}
