"""Which scores may be compared, which results are seeds of one setting, and whether differences exceed their noise."""

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from dist_sketch.core.config import FREE
from dist_sketch.metrics.definitions import METRICS
from dist_sketch.reports.compare.results import Result, without
from dist_sketch.reports.page import number

CONFIDENCE = 0.95
RULE = f"Student's t-test, two-sided, {CONFIDENCE:.0%}"

# Settings that cannot change the result: paths, tolerances, logging, validation schedule.
HARMLESS = (
    *(key for key in FREE if key not in ("train.epochs", "train.accumulate")),
    *("train.validate_", "train.sample_"),
)
DECISIVE = ("size", "manifest_sha256", "world_size", "precision", "code", "versions")  # facts that can change it
SIGNS = {m.key: m.sign for m in METRICS}


def comparable(a: Result, b: Result) -> list[str]:
    """The reasons why the scores of two results must not be compared; empty if they may be."""
    if a.kind != b.kind:
        return ["one is scored by its drawings, the other only during its training: draw with `dist-sketch infer`"]
    lacking = [f"{r.name} has no scores" for r in (a, b) if r.kind == "output" and r.scores is None]
    lacking += [f"{r.name} {r.unfinished}" for r in (a, b) if r.kind == "run" and r.unfinished]
    if lacking:
        return lacking
    mine, other = _conditions(a), _conditions(b)
    reasons = []
    for what in mine:
        values = (mine[what], other[what])
        if values[0] == values[1] or (what.startswith("FID") and None in values):
            continue  # without weights there is no FID to compare
        plain = what in ("other faces", "another data set", "other pictures under the same names")
        first, second = (str(v)[:12] if "weights" in what else str(v) for v in values)
        reasons.append(what if plain else f"{what}: {first} and {second}")
        if plain or what == "n":
            break  # further differences follow from this one
    return reasons


def _conditions(result: Result) -> dict[str, Any]:
    """What scores depend on besides the drawings; the most important first."""
    config, facts = result.config, result.facts
    if result.scores is None:
        return {
            "another data set": facts.get("manifest_sha256"),
            "size in px": facts.get("size"),
            "channels": config.get("data.channels"),
            "train.validate_limit": config.get("train.validate_limit"),
        }
    scores, infer = result.scores, result.infer
    settings = {k: v if isinstance(v, dict) else {} for k, v in scores["settings"].items()}
    fid, base = settings.get("fid", {}), scores["baselines"]
    exact = infer.get("format") == "png" and str(infer.get("output_size")) in ("network", str(infer.get("size")))
    from_files = scores["settings"].get("source") == "files" and not exact
    paired = [(base.get(b) or {}).get(k) for b in ("blank", "input") for k in ("ssim", "l1", "psnr")]
    return {
        "split": infer.get("split"),
        "n": scores["n"],
        "other faces": sorted(result.names),
        "size in px": scores.get("size"),
        # These scores depend on the lines and the real sketches only.
        "other pictures under the same names": [None if v is None else round(float(v), 6) for v in paired],
        "scored": f"from {infer.get('format')} files of size {infer.get('output_size')}" if from_files else "exactly",
        "SSIM's settings": settings.get("ssim"),
        "FID's weights": fid.get("weights_sha256"),
        "FID's resize": fid.get("resize"),
        "FID's dims": fid.get("dims"),
        "KID's settings": settings.get("kid"),
    }


def comparable_sets(results: list[Result]) -> list[list[Result]]:
    """Splits results into sets within which scores may be compared; results without scores are left out."""
    sets: list[list[Result]] = []
    for result in results:
        if comparable(result, result):
            continue
        fitting = next((s for s in sets if not any(comparable(result, other) for other in s)), None)
        if fitting is None:
            sets.append([result])
        else:
            fitting.append(result)
    return sets


class Group(NamedTuple):
    """Results that differ only in their seed."""

    label: str
    results: list[Result]


def groups(results: list[Result]) -> list[Group]:
    """Groups results that differ only in their seed, in the order of their first members."""
    members: dict[tuple[str, int], list[Result]] = {}
    repeats: Counter[tuple[str, Any]] = Counter()  # a seed that a group has already begins another group
    for result in results:
        identity = _identity(result)
        members.setdefault((identity, repeats[identity, result.seed]), []).append(result)
        repeats[identity, result.seed] += 1
    found: list[Group] = []
    for group in members.values():
        label = _common_name([r.name for r in group])
        taken = {*(g.label for g in found), *(r.name for r in results if r not in group)}
        if not label or label in taken:
            label = f"{group[0].name} and {len(group) - 1} more"
        found.append(Group(label, group))
    return found


def _identity(result: Result) -> str:
    """What the seeds of one setting have in common."""
    infer = {k: result.infer.get(k) for k in ("split", "size", "output_size", "format", "mode")}
    facts = {k: result.facts.get(k) for k in DECISIVE}
    config = without(result.config, (*HARMLESS, "train.seed"))
    step = "chosen" if result.infer.get("chosen") else result.step
    common = [result.kind, step, config, infer, facts, _conditions(result)]
    return json.dumps(common, sort_keys=True, default=str)


def _common_name(names: list[str]) -> str:
    """The common beginning of the names of several seeds, without the mark of the seed: a-s10, a-s11 -> a."""
    if len(names) == 1:
        return names[0]
    prefix = os.path.commonprefix(names)  # noqa: RUF071 - character by character
    if any(name[len(prefix) : len(prefix) + 1].isdigit() for name in names):
        prefix = prefix.rstrip("0123456789")
    return re.sub(r"([-_. ]s|[-_. ]?seed)?[-_. =/]*$", "", prefix)


def score(result: Result, variant: str, metric: str) -> float | None:
    """One score; None if it was not computed.

    Args:
        variant: "raw", "denoised" or a baseline ("blank", "input", "reference") of an output; "val" (the last) or
            "best" for the scores of the validation split during training.
        metric: a key of METRICS.
    """
    if variant in ("val", "best"):
        scored = [r[f"val/{metric}"] for r in result.records if isinstance(r.get(f"val/{metric}"), int | float)]
        if not scored:
            return None
        best = max if SIGNS[metric] > 0 else min
        return float(scored[-1] if variant == "val" else best(scored))
    if result.scores is None:
        return None
    part = result.scores[variant] if variant in ("raw", "denoised") else result.scores["baselines"].get(variant)
    found = (part or {}).get(metric)
    return None if found is None else float(found)


def seed_scores(group: Group, variant: str, metric: str) -> list[float]:
    """The scores of a group's seeds, without those that were not computed."""
    return [v for r in group.results if (v := score(r, variant, metric)) is not None]


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1); a single value has no deviation."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_text(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation as text; a dash if there are no values."""
    mean, sd = mean_sd(values) if values else (None, None)
    return number(mean, digits) + ("" if sd is None else f" ± {number(sd, digits)}")


class Effect(NamedTuple):
    """A mean, or a difference of two means, and its noise over the seeds."""

    mean: float
    margin: float | None  # half width of the confidence interval; None for one seed each, whose noise is unknown
    error: float | None  # standard error

    @property
    def sign(self) -> int:
        """+1 or -1 if the effect exceeds its noise, which counts as 0 if it is unknown; else 0."""
        return 0 if abs(self.mean) <= (self.margin or 0.0) else 1 if self.mean > 0 else -1

    def mood(self, good: int) -> Literal["better", "worse", "noise", "unknown"]:
        """What the effect means for a metric of which more (`good` = 1) or less (-1) is better."""
        if self.margin is None:
            return "unknown"
        return "noise" if not self.sign else "better" if self.sign == good else "worse"


def t_test(values: Sequence[float], others: Sequence[float] | None = None) -> Effect:
    """Student's t-test, two-sided, at CONFIDENCE: the mean of `values` against 0, or against the mean of `others`.

    Both samples are taken to have the same variance, so one of them may be a single value.
    """
    mean = fmean(values) - (fmean(others) if others else 0.0)
    if len(values) == len(others or values) == 1:
        return Effect(mean, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of SciPy, if all values are equal
        test = stats.ttest_ind(values, others) if others else stats.ttest_1samp(values, 0.0)
        low, high = test.confidence_interval(CONFIDENCE)
    margin = float(high - low) / 2
    rounding = 1e-12 * max(map(abs, (*values, *(others or ()))))  # the means of equal values may differ by this
    return Effect(mean, margin + rounding, margin / t_quantile(test.df))


def t_quantile(freedom: float) -> float:
    """How many standard errors an effect must exceed, at these degrees of freedom."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def difference(group: Group, other: Group, variant: str, metric: str) -> Effect | None:
    """How far `group` is above `other`; None if one of them has no such score, or they must not be compared."""
    if any(comparable(a, b) for a in group.results for b in other.results):
        return None
    mine, others = seed_scores(group, variant, metric), seed_scores(other, variant, metric)
    return t_test(mine, others) if mine and others else None
