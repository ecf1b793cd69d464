"""Which scores may be compared, which results are seeds of one setting, and whether differences exceed their noise."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import cache
from statistics import fmean
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from scipy import special, stats

from dist_sketch.core.config_rules import FREE
from dist_sketch.metrics.definitions import METRICS
from dist_sketch.reports.compare.results import Result, without
from dist_sketch.reports.page import number

CONFIDENCE = 0.95
RULE = f"Student's t-test, two-sided, {CONFIDENCE:.0%}, with Holm's correction for all tests of a table"
T = TypeVar("T", bound=Hashable)

# Settings that cannot change the result: paths, tolerances, logging, validation schedule.
HARMLESS = (
    *(key for key in FREE if key not in ("train.epochs", "train.accumulate")),
    *("train.validate_", "train.sample_"),
)
# Facts that can change it.
DECISIVE = ("size", "manifest_sha256", "world_size", "precision", "code", "versions", "began_with")
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


@cache
def _conditions(result: Result) -> dict[str, Any]:
    """What scores depend on besides the drawings; the most important first."""
    config, facts = result.config, result.facts
    if result.scores is None:
        return {
            "another data set": facts.get("manifest_sha256"),
            "size in px": facts.get("size"),
            "channels": config.get("data.channels"),
            "data.where": config.get("data.where"),
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
    """Splits results into sets within which scores may be compared; results without scores are left out.

    Results are compared with what a set has in common, not with each of its members: pages have thousands.
    """
    found: list[list[Result]] = []
    alike: dict[str, list[tuple[dict[str, Any], list[Result]]]] = {}  # all conditions but FID's -> FID's, members
    for result in results:
        if comparable(result, result):
            continue
        conditions = _conditions(result)
        fid = {k: v for k, v in conditions.items() if k.startswith("FID")}
        rest = [result.kind, {k: v for k, v in conditions.items() if k not in fid}]
        sets = alike.setdefault(json.dumps(rest, sort_keys=True, default=str), [])
        for known, members in sets:
            if all(known[k] is None or v is None or known[k] == v for k, v in fid.items()):
                known |= {k: v for k, v in fid.items() if v is not None}
                members.append(result)
                break
        else:
            sets.append((fid, [result]))
            found.append(sets[-1][1])
    return found


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
    names, labels = {r.name for r in results}, set[str]()
    for group in members.values():
        label, own = _common_name([r.name for r in group]), {r.name for r in group}
        if not label or label in labels or (label in names and label not in own):
            label = f"{group[0].name} and {len(group) - 1} more"
        labels.add(label)
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
        scored = _validated(result, metric)
        if not scored:
            return None
        best = max if SIGNS[metric] > 0 else min
        return float(scored[-1] if variant == "val" else best(scored))
    if result.scores is None:
        return None
    part = result.scores[variant] if variant in ("raw", "denoised") else result.scores["baselines"].get(variant)
    found = (part or {}).get(metric)
    return None if found is None else float(found)


@cache
def _validated(result: Result, metric: str) -> list[float]:
    """All scores of the validation split during training; kept, because tables ask for them again and again."""
    return [value for r in result.records if (value := r.get(f"val/{metric}")) is not None]


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
    freedom: int = 0  # degrees of freedom
    rounding: float = 0.0  # the means of equal values may differ by this

    @property
    def sign(self) -> int:
        """+1 or -1 if the effect exceeds its noise, which counts as 0 if it is unknown; else 0."""
        return 0 if abs(self.mean) <= (self.margin or 0.0) else 1 if self.mean > 0 else -1

    def mood(self, good: int) -> Literal["better", "worse", "noise", "unknown"]:
        """What the effect means for a metric of which more (`good` = 1) or less (-1) is better."""
        if self.margin is None:
            return "unknown"
        return "noise" if not self.sign else "better" if self.sign == good else "worse"

    @property
    def chance(self) -> float:
        """How probable so large an effect, or a larger one, is by chance alone (p)."""
        if not self.error:
            return float(abs(self.mean) <= self.rounding)
        return 2 * float(special.stdtr(self.freedom, -abs(self.mean) / self.error))

    def at(self, confidence: float) -> "Effect":
        """The same effect with the margin of this confidence."""
        if self.error is None:
            return self
        return self._replace(margin=self.error * t_quantile(self.freedom, confidence) + self.rounding)


def t_test(values: Sequence[float], others: Sequence[float] | None = None) -> Effect:
    """Student's t-test, two-sided, at CONFIDENCE: the mean of `values` against 0, or against the mean of `others`.

    Both samples are taken to have the same variance, so one of them may be a single value.
    """
    samples = [values, others] if others else [values]
    mean = fmean(values) - (fmean(others) if others else 0.0)
    freedom = sum(len(sample) - 1 for sample in samples)
    if not freedom:
        return Effect(mean, None, None)
    variance = sum(float(np.var(sample)) * len(sample) for sample in samples) / freedom
    error = math.sqrt(variance * sum(1 / len(sample) for sample in samples))
    rounding = 1e-12 * max(map(abs, (*values, *(others or ()))))
    return Effect(mean, None, error, freedom, rounding).at(CONFIDENCE)


@cache
def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """How many standard errors an effect must exceed, at these degrees of freedom."""
    return float(stats.t.ppf((1 + confidence) / 2, freedom))


def holm(effects: dict[T, Effect]) -> dict[T, Effect]:
    """The effects with margins by Holm's step-down correction: chance alone shall move hardly any page.

    A page makes dozens of tests. Without correction chance alone makes at least one of eight differ in 34 % of the
    pages of 2 against 2 seeds; with it in 5 % (simulated in the tests).
    """
    tested = sorted((k for k, e in effects.items() if e.margin is not None), key=lambda k: effects[k].chance)
    found, left, failed = dict(effects), len(tested), False
    for key in tested:
        found[key] = effects[key].at(1 - (1 - CONFIDENCE) / left)
        failed = failed or not found[key].sign
        left -= not failed  # once one is noise, all that follow are judged at its level, and are noise, too
    return found


def least_sure(seeds: int, others: int, tests: int) -> float:
    """How large a difference of two means must be to be sure, in standard deviations between seeds.

    Of differences as large as this half to two thirds are found, larger ones more often (simulated in the tests).

    Args:
        seeds, others: of the two settings; three or more together.
        tests: on the page, by whose number Holm's correction begins.
    """
    quantile = t_quantile(seeds + others - 2, 1 - (1 - CONFIDENCE) / tests)
    return quantile * math.sqrt(1 / seeds + 1 / others)


def what_seeds_can_tell(groups: list[Group], effects: dict[tuple[str, str, str], Effect]) -> str:
    """A sentence on the differences that these numbers of seeds can find; "" without a test."""
    tests = sum(e.margin is not None for e in effects.values())
    others = [len(g.results) for g in groups[1:] if any(label == g.label for label, _, _ in effects)]
    if not tests or not others:
        return ""
    first, fewest = len(groups[0].results), min(others)
    if first + fewest < 3:
        fewest = min(n for n in others if first + n >= 3)
    more = ", ".join(f"{n} seeds each {least_sure(n, n, tests):.1f}" for n in (3, 5, 10) if n > max(first, fewest))
    return (
        f"With {first} and {fewest} seeds and {tests} tests in this table, a difference is sure above "
        f"{least_sure(first, fewest, tests):.1f} standard deviations between seeds"
        + (f" (with {more})." if more else ".")
    )


def differences(groups: list[Group]) -> dict[tuple[str, str, str], Effect]:
    """How far each group is above the first one: (group's label, variant, metric) -> effect, corrected for the page.

    Missing where one of the two has no such score, or they must not be compared.
    """
    found: dict[tuple[str, str, str], Effect] = {}
    for group in groups[1:]:
        both = [*groups[0].results, *group.results]
        # All members of a group have the same conditions.
        if comparable(group.results[0], groups[0].results[0]) or any(comparable(r, r) for r in both):
            continue
        for variant in ("denoised", "raw") if group.results[0].scores else ("val",):
            for m in METRICS:
                mine, others = (seed_scores(g, variant, m.key) for g in (group, groups[0]))
                if mine and others:
                    found[group.label, variant, m.key] = t_test(mine, others)
    return holm(found)
