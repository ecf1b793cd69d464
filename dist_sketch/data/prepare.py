"""Makes samples of pairs of image files: reads, fits, looks at and encodes them, in worker processes."""

import io
import json
import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from dist_sketch.core import cpus
from dist_sketch.core.workers import workers as processes
from dist_sketch.data import looks
from dist_sketch.data.fit import fitted
from dist_sketch.data.freehand import version_of_image
from dist_sketch.data.image_files import BadImage, read_image
from dist_sketch.data.manifest import Fit
from dist_sketch.data.recipe import FilePair, Problem
from dist_sketch.data.shard_writer import block_of

PAIRS_A_WORKER = 32  # with fewer, starting a process takes longer than it saves


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """How the pictures of a pair are made; `pack.pack` says what the fields mean."""

    size: int = 256
    fit: Fit = "squash"
    invert: bool = False
    freehand: int | None = None


class Prepared(NamedTuple):
    """A pair as it stands in a shard, and what it looks like."""

    pair: FilePair
    block: bytes
    look: looks.Look


class _Made(NamedTuple):
    """The same before it is part of a tar."""

    pair: FilePair
    members: dict[str, bytes]  # ending of its name -> contents
    look: looks.Look


Result = Prepared | list[Problem]


def prepare_all(
    chosen: list[FilePair], root: Path, pictures: Pictures, workers: int | None
) -> Generator[Result, None, None]:
    """Prepares pairs in worker processes, in order, with a bounded number of results waiting to be written."""
    for result in _made_all(chosen, partial(_made, root=root, pictures=pictures), workers):
        # Here, not in the workers: the writer of tars imports torch, which takes a process 3 s.
        yield (
            result
            if isinstance(result, list)
            else Prepared(result.pair, block_of(result.pair.key, result.members), result.look)
        )


def _made_all(
    chosen: list[FilePair], make: Callable[[FilePair], _Made | list[Problem]], workers: int | None
) -> Generator[_Made | list[Problem], None, None]:
    n = min(workers or len(cpus.usable()), math.ceil(len(chosen) / PAIRS_A_WORKER))
    if n <= 1:
        yield from map(make, chosen)
        return
    # Processes, because Pillow's encoder holds the GIL; spawned, because a fork would copy locks that torch's and
    # rich's threads hold.
    with processes(n, "spawn", "--workers 1") as pool:
        futures = (pool.submit(make, pair) for pair in chosen)
        waiting = deque(islice(futures, 8 * n))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(islice(futures, 1))


def _made(pair: FilePair, root: Path, pictures: Pictures) -> _Made | list[Problem]:
    """Reads, fits, looks at and encodes a pair."""
    about: dict[str, Any] = {"name": pair.name, "split": pair.split}
    if pair.labels:
        about["labels"] = pair.labels
    members: dict[str, bytes] = {}
    problems, files, seen = [], [], []
    for side, path, half in pair.sides():
        file = path.relative_to(root).as_posix()
        try:
            image = read_image(path, half)
        except BadImage as e:
            problems.append(Problem(file, e.why))
            continue
        about[side] = {"file": file, "width": image.width, "height": image.height, "mode": image.info["mode"]}
        buffer = io.BytesIO()
        files.append(image.size)
        turn = pictures.invert and side == "line"
        # If the line is bad, nothing is packed, and the shape does not matter
        picture = fitted(image, files[0], pictures.size, pictures.fit, invert=turn)
        seen.append(picture)  # the clean line, because one in thick strokes looks like a sketch
        if side == "line" and pictures.freehand is not None:
            picture = version_of_image(picture, pictures.freehand, 0, pair.key)
        picture.save(buffer, "PNG")
        members[f"{side}.png"] = buffer.getvalue()
    members["json"] = json.dumps(about, ensure_ascii=False).encode()
    return problems or _Made(pair, members, looks.look(files, seen))
