"""Scores of drawings: during inference, or again from the files of an output folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track as progress_bar
from torch import Tensor

from dist_sketch.core import fileio
from dist_sketch.core.errors import UserError
from dist_sketch.core.folders import Lock
from dist_sketch.core.places import place
from dist_sketch.core.ranks import Ranks
from dist_sketch.core.saved import read_finished_infer
from dist_sketch.core.words import plain
from dist_sketch.data import pixels
from dist_sketch.data.fit import fitted, with_plain_margins
from dist_sketch.data.image_files import read_image
from dist_sketch.data.manifest import MANIFEST, Fit
from dist_sketch.data.order import order
from dist_sketch.data.recipe import listed
from dist_sketch.data.shards import BadSample, Sample, Shards
from dist_sketch.data.store import exists
from dist_sketch.metrics import inception
from dist_sketch.metrics.scorer import Scorer


def make_scorer(fid_weights: Path | None, ranks: Ranks) -> Scorer:
    """A scorer for this rank; without FID's weights it leaves out FID and KID."""
    weights = inception.find(fid_weights)
    return Scorer(inception.load(weights, ranks.device) if weights else None)


class ReferenceSketches:
    """Real training sketches in a fixed random order, one for each input: what a perfect artist would score."""

    def __init__(self, folder: str | None, count: int, size: int):
        self._size = size
        self._shards = None
        if folder is not None and exists(place(folder), MANIFEST):
            self._shards = Shards(place(folder), "train")
            self._places = order(len(self._shards), 0, 0, shuffle=True)[:count]

    def add(self, scorer: Scorer, indices: Iterable[int], numbers: Sequence[int] = ()) -> None:
        """Adds the sketches that belong to the inputs `indices`."""
        if self._shards is None:
            return
        good, left_out = {}, []
        number = {i: numbers[i] if i < len(numbers) else i for i in indices}
        own = [i for i in number if number[i] < len(self._places)]
        samples = self._shards.read_several([int(self._places[number[i]]) for i in own], 3)
        for i, sample in zip(own, samples, strict=True):
            if isinstance(sample, BadSample):
                left_out.append(str(sample))
            else:
                assert sample.sketch is not None  # `reference_shards` has seen to it
                good[i] = pixels.resize(sample.sketch, self._size, self._size)
        scorer.add_reference(list(good), list(good.values()), left_out)


class Scores:
    """The scores of a rank's drawings, beside the baselines.

    Args:
        reference: the folder of `sources.reference_shards`.
        count: the number of inputs, of all ranks.
        size: of the network's square, px.
    """

    def __init__(self, fid_weights: Path | None, ranks: Ranks, reference: str | None, count: int, size: int):
        self._scorer = make_scorer(fid_weights, ranks)
        self._reference = ReferenceSketches(reference, count, size)

    def add(self, indices: list[int], items: list[Sample], raw: list[Tensor], clean: list[Tensor], how: Fit) -> None:
        """Adds drawings of the inputs `indices`, before and after noise removal, uint8 (3, size, size)."""
        sketches = [i.sketch for i in items if i.sketch is not None]
        images = {"raw": raw, "denoised": clean, "line": [i.line for i in items], "real": sketches}
        squares = {
            kind: torch.stack(
                [
                    pixels.to_rgb(with_plain_margins(image, item.source_size, how))
                    for item, image in zip(items, found, strict=True)
                ]
            )
            for kind, found in images.items()
        }
        self._scorer.add(indices, [i.name for i in items], squares)
        self._reference.add(self._scorer, indices)

    def state(self) -> dict[str, Any]:
        """What rank 0 needs of this rank."""
        return self._scorer.state()


def finish_scores(out: Path, states: list[Any], source: str, about: dict[str, Any]) -> dict[str, Any]:
    """Merges the states of all ranks' scorers and writes OUT/metrics.json; returns its contents.

    Args:
        about: the contents of infer.json; what was done to the inputs stands beside the scores.
    """
    result = Scorer.result(states, source)
    kept = {key: about[key] for key in ("fit", "invert", "packed_px") if about.get(key) is not None}
    result["settings"]["input"] = {key.replace("_", " "): value for key, value in kept.items()}
    if left_out := result["settings"]["reference_left_out"]:
        unread = f"{len(left_out)}{listed(left_out)}"
        print(plain(f"left out of the other real sketches, because they cannot be read: {unread}"))
    fileio.write_json(out / "metrics.json", result)
    return result


def evaluate(out: Path, fid_weights: Path | None, rank_timeout_s: float) -> dict[str, Any] | None:
    """Scores the files of an output folder again and writes OUT/metrics.json.

    Margins of padded pages are put on again. Files of another size are first resized to the network's size, which
    changes the scores a little.

    Args:
        rank_timeout_s: how long a rank waits for the others.

    Raises:
        UserError: `out` was not made by `infer`, a file of it is gone, or its input had no sketches.
    """
    with Lock(out) as lock, Ranks(timeout_s=rank_timeout_s) as ranks:
        about = ranks.main_decides(lambda: _take(out, lock))
        scorer, names = make_scorer(fid_weights, ranks), about["names"]
        mine = ranks.share(len(names))
        reference = ReferenceSketches(about["reference"], len(names) + len(about.get("left_out", [])), about["size"])
        for start in progress_bar(range(mine.start, mine.stop, 16), "scoring", disable=not ranks.is_main):
            indices = range(start, min(start + 16, mine.stop))
            chosen = [names[i] for i in indices]
            images = [read_output(out, about, name) for name in chosen]
            scorer.add(indices, chosen, {kind: torch.stack([i[kind] for i in images]) for kind in images[0]})
            reference.add(scorer, indices, about.get("numbers", ()))
        states = ranks.gather_to_main(scorer.state())
        return ranks.main_decides(lambda: finish_scores(out, states or [], "files", about))


def _take(out: Path, lock: Lock) -> dict[str, Any]:
    """Locks an output folder that can be scored; returns the contents of its infer.json."""
    if not (out / "infer.json").is_file():
        raise UserError(f"{out}: is not an output folder of `dist-sketch infer` (no infer.json)")
    lock.acquire()
    about = read_finished_infer(out, "format", "size", "reference")
    if not (out / "real").is_dir():
        raise UserError(f"{out}: its input had no sketches, so there is nothing to compare the drawings with")
    return about


def read_output(out: Path, about: dict[str, Any], name: str) -> dict[str, Tensor]:
    """The images of one input in an output folder, whose infer.json holds `about`, by the names of `Scorer.add`.

    They are uint8 (3, H, W), brought to the network's size.
    """
    drawn = about["format"]
    suffixes = {"line": ("line", "png"), "raw": ("raw", drawn), "denoised": ("sketch", drawn), "real": ("real", "png")}
    found = {}
    for kind, (folder, suffix) in suffixes.items():
        file = read_image(out / folder / f"{name}.{suffix}")
        if about.get("fit") == "pad":
            file = fitted(file, file.size, about["size"], "pad")
        found[kind] = pixels.resize(pixels.from_image(file, 3), about["size"], about["size"])
    return found
