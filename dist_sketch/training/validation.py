"""Draws fixed pairs during a run: scores of the validation split, sample pictures, training pairs for calibration."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dist_sketch.core.errors import SharedError
from dist_sketch.core.fileio import write_atomic
from dist_sketch.core.precision import full_float32
from dist_sketch.core.ranks import Ranks
from dist_sketch.core.words import tell
from dist_sketch.data import pixels
from dist_sketch.data.selection import chosen
from dist_sketch.data.shards import BadSample, Sample, Shards
from dist_sketch.metrics import fid_kid, inception
from dist_sketch.metrics.scorer import EACH

NAMES = ("ssim", "scoot", "l1", "specks")  # the scores of each pair, of those that `Scorer` knows
Draw = Callable[[Tensor], Tensor]  # uint8 lines -> uint8 sketches
Features = dict[int, NDArray[np.float32]]  # of one image: dims -> values
DrawnPair = tuple[Sample, Tensor, Tensor]  # a sample, what was drawn for its line, its real sketch; uint8 (C, H, W)


def _inception(ranks: Ranks, most: int) -> inception.Inception | None:
    """FID's network for features of up to `most` dims; None on all ranks if one of them has no weights."""
    weights = inception.find()
    if not all(ranks.gather(weights is not None)):
        return None
    assert weights is not None
    net = inception.load(weights, ranks.device)
    if most == 64:
        del net.blocks[1:]  # 90 MB that FID-64 does not need
    return net


def _features(net: inception.Inception, image: Tensor, most: int) -> Features:
    """Features of one image; not of a batch, so that they do not depend on which images share it."""
    return {d: f[0].numpy() for d, f in inception.features(net, image[None], most).items() if d in (64, 2048)}


def _distances(parts: list[list[tuple[int, Features, Features]]]) -> dict[str, float]:
    """FID and KID of the images of all ranks, each with its number."""
    rows = sorted((row for part in parts for row in part), key=lambda row: row[0])
    found = {}
    for dims in rows[0][1]:
        drawn = np.stack([mine[dims] for _, mine, _ in rows]).astype(np.float64)
        real = np.stack([theirs[dims] for _, _, theirs in rows]).astype(np.float64)
        found[f"fid_{dims}"] = fid_kid.frechet(drawn, real)
        if dims == 2048:
            found["kid"] = fid_kid.kid(drawn, real)
    return found


@contextmanager
def drawing(generator: nn.Module, device: torch.device) -> Iterator[Draw]:
    """Yields a function that draws uint8 lines (B, C, H, W) as uint8 sketches of the same shape, on the CPU.

    It draws in float32, with running statistics and without dropout. Afterwards the generator trains on as before.
    """
    dtype, was_training = next(generator.parameters()).dtype, generator.training

    @torch.no_grad()
    def draw(lines: Tensor) -> Tensor:
        with full_float32(device):
            fake = generator(pixels.to_float(lines.to(device)).to(dtype, memory_format=torch.channels_last))
        return pixels.to_uint8(fake).cpu()

    generator.eval()
    try:
        yield draw
    finally:
        generator.train(was_training)


class Validation:
    """The validation split of a run's shards; the training split, under another name and with a warning, if none.

    All drawing is done in float32, so that the scores of runs with different precisions can be compared.

    Args:
        skip_bad: number of unreadable samples that may be left out of a scoring.
        fid: 64: also score FID-64 if every rank's machine has FID's weights; 2048: also FID-2048 and KID, which need
            them.
        where: of the validation split only the pairs for which this is true, as `data.where` of the training pairs.

    Raises:
        UserError: `fid` is 2048 and a rank's machine has no weights of FID's network; raised on all ranks.
    """

    def __init__(
        self,
        training: Shards,
        channels: int,
        ranks: Ranks,
        skip_bad: int = 0,
        fid: int | None = None,
        where: str = "",
    ):
        self._ranks, self._channels, self._skip_bad, self._fid = ranks, channels, skip_bad, fid
        if fid == 2048 and not all(ranks.gather(inception.find() is not None)):
            raise SharedError(f"checkpoint.choose = 'kid': a rank's machine has no Inception weights; {inception.WAYS}")
        self._inception: inception.Inception | None = None
        self._real: dict[int, Features] = {}  # features of the real sketches, kept because these do not change
        self._training = self._shards = training
        self.name = "val"  # stands before the names of the scores
        split = chosen(Shards(training.folder, "val", training.access), where) if training.paired.get("val") else None
        if split is not None and len(split):
            self._shards = split
        else:
            self.name, of_them = "seen", f" for which data.where = {where!r} is true" if where else ""
            if ranks.is_main:
                print(
                    f"warning: {training.folder} has no validation pairs{of_them}: pairs that the run trains on are "
                    f"scored, as {self.name}/ssim and the like, which says nothing about new faces"
                )

    def scores(self, generator: nn.Module, limit: int, told: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Mean scores over the first `limit` pairs (0: all), each drawn on exactly one rank: SSIM, SCOOT, L1, specks.

        And FID and KID of them, as far as they are wanted and there are weights for them.

        They are named `val/ssim` and so on; `seen/ssim` if there are no validation pairs.

        Raises:
            UserError: more unreadable samples than are allowed; raised on all ranks.
        """
        if self._fid and self._inception is None:
            self._inception = _inception(self._ranks, self._fid)
            self._fid = self._fid if self._inception else None
        sums = torch.zeros(len(NAMES) + 2, dtype=torch.float64)
        features: list[tuple[int, Features, Features]] = []
        places = self._ranks.share(min(limit or len(self._shards), len(self._shards)))
        with drawing(generator, self._ranks.device) as draw:
            for i, sample in self._shards.stream(places, self._channels):
                told()
                if isinstance(sample, BadSample):
                    tell(f"warning: left out: {sample}")
                    sums[-1] += 1
                    continue
                _, fake, real = _drawn(draw, sample)
                fake, real = pixels.to_rgb(fake), pixels.to_rgb(real)
                if self._inception is not None and self._fid:
                    if i not in self._real:
                        self._real[i] = _features(self._inception, real, self._fid)
                    features.append((i, _features(self._inception, fake, self._fid), self._real[i]))
                own = [*(EACH[name](fake, real) for name in NAMES), 1, 0]
                sums += torch.tensor(own, dtype=torch.float64)
        *totals, count, bad = self._ranks.sum(sums).tolist()
        if bad > self._skip_bad:
            raise SharedError(
                f"{self._shards.folder}: {bad:.0f} {self._shards.split} sample(s) are unreadable, {self._skip_bad} are "
                "allowed (--data.skip-bad N); `dist-sketch verify` names them"
            )
        found = {name: total / count for name, total in zip(NAMES, totals, strict=True)} if count else {}
        if self._inception is not None and count >= 2:
            parts = self._ranks.gather_to_main(features)
            # All ranks use rank 0's figures: rounding must not lead them to different decisions.
            found |= self._ranks.main_decides(lambda: _distances(parts or []))
        return {f"{self.name}/{metric}": score for metric, score in found.items()}

    def picture(self, generator: nn.Module, count: int, path: Path) -> list[DrawnPair]:
        """Writes rows of line | drawn | real for the first `count` pairs that can be read, and returns these."""
        pairs = list(self.draw(generator, count))
        if pairs:
            rows = [torch.cat((s.line, raw, real), dim=2) for s, raw, real in pairs]
            write_atomic(path, pixels.encode(torch.cat(rows, dim=1)))
        return pairs

    def draw(self, generator: nn.Module, count: int) -> Iterator[DrawnPair]:
        """Draws the first `count` pairs that can be read, one after the other."""
        with drawing(generator, self._ranks.device) as draw:
            yield from islice(self._readable(draw, self._shards, range(len(self._shards))), count)

    def draw_training_pairs(self, generator: nn.Module, count: int) -> Iterator[DrawnPair]:
        """Draws up to `count` training pairs that can be read, spread over the split, one after the other."""
        count = min(count, len(self._training))
        places = (i * len(self._training) // count for i in range(count))
        with drawing(generator, self._ranks.device) as draw:
            yield from self._readable(draw, self._training, places)

    def _readable(self, draw: Draw, shards: Shards, places: Iterable[int]) -> Iterator[DrawnPair]:
        for _, sample in shards.stream(places, self._channels):
            if not isinstance(sample, BadSample):  # scoring, or training, has reported it
                yield _drawn(draw, sample)


def _drawn(draw: Draw, sample: Sample) -> DrawnPair:
    assert sample.sketch is not None
    return sample, draw(sample.line[None])[0], sample.sketch
