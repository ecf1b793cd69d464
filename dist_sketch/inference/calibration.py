"""Choice of the noise removal: candidates are compared on training pairs; those that fall behind leave early."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from dist_sketch.core.config import DenoiseConfig, Filter
from dist_sketch.metrics import similarity
from dist_sketch.model.denoise import Array, denoise, despeckle, page_tone, planes_of

STRENGTHS = (0.25, 0.5, 1.0, 2.0)
ROUNDS = (4, 8, 12, 16, 20)  # pairs after which the candidates that clearly fall behind leave
CLEAR = 1.25  # standard errors that a difference must have to be clear
CLOSE = 1.05  # times the smallest noise distance: up to here the SSIM decides
TRIALS = 4  # most candidates for which the distance is computed
NOTHING = DenoiseConfig(filter="none", shadows=False)  # but gray
Values = NDArray[np.float64]


@dataclass(eq=False)
class Candidate:
    """A noise removal, and what was measured with it, one value for each of the pairs so far."""

    filter: Filter
    strength: float
    shadows: bool
    stays: bool = True  # in the race
    ssim: list[float] = field(default_factory=list)
    cleaned: list[Tensor] = field(default_factory=list)  # drawings, uint8 (1, H, W); only of those that stay
    moved: list[Values] = field(default_factory=list)  # noise features minus those of the real sketch, (3, 4)
    distance: float | None = None
    ruled_out: bool = False  # by its distance

    @property
    def settings(self) -> DenoiseConfig:
        """As `denoise` takes them."""
        return DenoiseConfig(filter=self.filter, strength=self.strength, shadows=self.shadows)

    @property
    def noise_distance(self) -> float | None:
        """How far the mean of its noise features is from that of the real sketches, in standard deviations of these."""
        return float(np.sqrt(np.mean(np.mean(self.moved, axis=0) ** 2))) if self.moved else None


def calibrate(
    raw: list[Tensor],
    real: list[Tensor],
    distance: Callable[[list[Tensor]], float] | None = None,
    told: Callable[[int], None] = lambda pairs: None,
) -> tuple[DenoiseConfig, list[dict[str, Any]]]:
    """Chooses filter, strength and shadow removal for a generator by its drawings of TRAINING pairs.

    Candidates are no filter, and each filter at four strengths, with and without shadow removal. A candidate is allowed
    if its mean SSIM is not below that of gray alone, of its shadow removal alone and of its filter alone: neither
    filter nor shadow removal may lower the SSIM. Of the allowed candidates the one whose noise statistics are nearest
    to those of the real sketches is taken; within 5 % of the nearest, the one with the best SSIM. If its `distance` is
    larger than that of gray alone, the next one is tried (of another filter, or weaker), at most TRIALS times.

    The candidates race (Maron and Moore 1994), because all of them on all pairs take a minute at 256 px: after each of
    ROUNDS those leave that clearly are not allowed, or are clearly farther from the real sketches than an allowed one.
    The same pairs always give the same choice.

    Args:
        raw: the generator's drawings, uint8 (3 or 1, H, W), all of one size.
        real: the sketches of the same pairs, in the same order; two or more.
        distance: of drawings, uint8 (1, H, W), from the real sketches, such as KID; None: not used.
        told: called often, with the number of pairs that are done; what it raises ends the race.

    Returns:
        The settings, and a row for each candidate: filter, strength, shadows, pairs (it was tried on), ssim (in gray),
        noise_distance (of `noise_features`, in standard deviations of the real sketches; None if its SSIM was clearly
        too low), distance (None where it was not computed), allowed, chosen. The first row is gray alone.
    """
    race = Race(raw, real, told)
    for pairs in [*(n for n in ROUNDS if n < len(raw)), len(raw)]:
        race.run_to(pairs)
        told(pairs)
    best = _best(race, distance)
    return best.settings, [race.row(c) | {"chosen": c is best} for c in race.candidates]


class Race:
    """Tries all candidates on the same pairs, round by round."""

    def __init__(self, raw: list[Tensor], real: list[Tensor], told: Callable[[int], None]):
        step = max(1, len(raw) // ROUNDS[0])  # so the first round's pairs are spread over all of them
        self._order = [i for first in range(step) for i in range(first, len(raw), step)]
        self._raw, self._told, self._done = raw, told, 0
        self._truth = [denoise(i, NOTHING) for i in real]
        self._real = [self._features(t) for t in self._truth]
        self._spread = np.std(self._real, axis=0).clip(0.1)
        filters: list[tuple[Filter, float]] = [("none", 1.0), *itertools.product(get_args(Filter)[1:], STRENGTHS)]
        self.candidates = [Candidate(*choice, shadows) for choice in filters for shadows in (False, True)]
        self._named = {(c.filter, c.strength, c.shadows): c for c in self.candidates}
        self.plain = self.candidates[0]  # gray alone

    def run_to(self, pairs: int) -> None:
        """Tries those that stay on the next pairs, up to this number; then those that fall behind leave."""
        new = self._order[self._done : pairs]
        needed = {part for c in self.candidates if c.stays for part in (c, *self._parts_of(c))}
        for i in new:
            self._try(i, [c for c in self.candidates if c in needed])
            self._done += 1
        last = pairs == len(self._order)
        for c in self.candidates:
            c.stays = c.stays and not (self._costs_ssim(c) if last else self._surely_costs_ssim(c))
        for c in self.candidates:
            for clean, i in zip(c.cleaned[len(c.moved) :] if c.stays else (), new, strict=False):
                c.moved.append((self._features(clean) - self._real[i]) / self._spread)
        if not last:
            self._leave_those_far_away()
        for c in self.candidates:
            if not c.stays:
                c.cleaned.clear()

    def drawings(self, c: Candidate) -> list[Tensor]:
        """What it made of all drawings, in their order; only of one that stays."""
        return [clean for _, clean in sorted(zip(self._order, c.cleaned, strict=True), key=lambda pair: pair[0])]

    def row(self, c: Candidate) -> dict[str, Any]:
        """What is told of a candidate."""
        found: dict[str, Any] = {"filter": c.filter, "strength": c.strength, "shadows": c.shadows, "pairs": len(c.ssim)}
        found |= {"ssim": float(np.mean(c.ssim)), "noise_distance": c.noise_distance, "distance": c.distance}
        return found | {"allowed": not (c.ruled_out or self._costs_ssim(c))}

    def _features(self, image: Tensor) -> Values:
        self._told(self._done)
        return noise_features(planes_of(image, True)[0])

    def _try(self, i: int, candidates: list[Candidate]) -> None:
        """Cleans the drawing of pair `i` in all these ways, and compares it with the real sketch."""
        for (name, strength), alike in itertools.groupby(candidates, lambda c: (c.filter, c.strength)):
            self._told(self._done)
            filtered = denoise(self._raw[i], DenoiseConfig(filter=name, strength=strength, shadows=False))
            for c in alike:
                clean = denoise(filtered, DenoiseConfig(filter="none")) if c.shadows else filtered
                c.ssim.append(similarity.ssim(clean, self._truth[i]))
                if c.stays:
                    c.cleaned.append(clean[:1].clone())

    def _parts_of(self, c: Candidate) -> list[Candidate]:
        """Gray alone, its shadow removal alone and its filter alone."""
        return [self.plain, self._named["none", 1.0, c.shadows], self._named[c.filter, c.strength, False]]

    def _gains(self, c: Candidate) -> list[Values]:
        """How much its SSIM is above that of each of its parts, on the pairs that it was tried on."""
        return [np.subtract(c.ssim, part.ssim[: len(c.ssim)]) for part in self._parts_of(c) if part is not c]

    def _costs_ssim(self, c: Candidate) -> bool:
        return any(gain.mean() < 0 for gain in self._gains(c))

    def _surely_costs_ssim(self, c: Candidate) -> bool:
        return any(gain.mean() < -CLEAR * _error(gain) for gain in self._gains(c))

    def _leave_those_far_away(self) -> None:
        """Those leave that are clearly farther away than the nearest one of which it is clear that it is allowed."""

        def squared(c: Candidate) -> tuple[float, Values]:
            """Its squared distance, and the part of each pair in its error (the delta method)."""
            moved = np.array(c.moved)
            mean = moved.mean(axis=0)
            return float(np.mean(mean**2)), 2 * np.mean(mean * (moved - mean), axis=(1, 2))

        staying = [c for c in self.candidates if c.stays]
        sure = [c for c in staying if all(gain.mean() >= CLEAR * _error(gain) for gain in self._gains(c))]
        least, least_each = min((squared(c) for c in sure), key=lambda found: found[0])
        for c in staying:
            mine, each = squared(c)
            c.stays = c is self.plain or mine - CLOSE**2 * least <= CLEAR * _error(each - CLOSE**2 * least_each)


def _error(values: Values) -> float:
    """The standard error of a mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _best(race: Race, distance: Callable[[list[Tensor]], float] | None) -> Candidate:
    """The candidate to take; marks those that `distance` rules out."""
    plain = race.plain  # gray alone is always allowed
    left = [c for c in race.candidates if c.stays]
    for _ in range(TRIALS):
        far = {c: c.noise_distance or 0.0 for c in left}
        best = max((c for c in left if far[c] <= CLOSE * min(far.values())), key=lambda c: np.mean(c.ssim))
        if best is plain or distance is None:
            return best
        for c in (plain, best):
            if c.distance is None:
                c.distance = distance(race.drawings(c))
        assert best.distance is not None
        assert plain.distance is not None
        if best.distance <= plain.distance:
            return best
        best.ruled_out = True
        # Stronger settings of the same filter would only use up the trials.
        left = [c for c in left if c is plain or c.filter != best.filter or c.strength < best.strength]
    return plain


def noise_features(plane: Array) -> NDArray[np.float64]:
    """Statistics that noise changes, as logarithms (3, 4): power in 4 bands of frequency, specks, tone at the edges."""
    height, width = plane.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    power = np.abs(np.fft.rfft2((plane - plane.mean()) * window)) ** 2 / window.sum()
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    ring = np.minimum((radius / 0.7072 * 6).astype(int), 5)
    rings = ndimage.mean(np.log(power + 1e-3), ring, np.arange(2, 6))  # the two lowest bands hold the picture itself
    residual = np.abs(plane - median_3x3(plane))
    isolated = np.abs(plane - despeckle(plane, 2.0))
    specks = [np.log((a > t).mean() + e) for a, e in ((residual, 1e-3), (isolated, 1e-4)) for t in (8, 32)]
    depth = page_tone(plane) - plane
    edges = [np.log(max(float(np.rot90(depth, k)[: max(2, height // 32)].mean()), 0) + 4) for k in range(4)]
    return np.array([rings, specks, edges])


def median_3x3(plane: Array) -> Array:
    """The median of each pixel (H, W) and its eight neighbours; the edge is repeated.

    It is that of the largest of three columns' lowest values, the middle one of their middle values, and the smallest
    of their highest values (Paeth 1990): whole planes are compared, in a tenth of the time of scipy's filter.
    """

    def middle(a: Array, b: Array, c: Array) -> Array:
        found: Array = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
        return found

    rows = np.pad(plane, 1, mode="edge")
    above, here, below = rows[:-2], rows[1:-1], rows[2:]
    low = np.minimum(np.minimum(above, here), below)
    high = np.maximum(np.maximum(above, here), below)
    lows, middles, highs = ((p[:, :-2], p[:, 1:-1], p[:, 2:]) for p in (low, middle(above, here, below), high))
    return middle(np.maximum.reduce(lows), middle(*middles), np.minimum.reduce(highs))
