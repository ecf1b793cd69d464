"""Which scores may be compared, which entries are seeds of one setting, and what their spread allows to say."""

import json
import math
import re
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from dist_sketch.core.config import FREE
from dist_sketch.metrics.definitions import METRICS
from dist_sketch.reports.compare.entries import Entry, essential

CONFIDENCE = 0.95  # of Student's t-test: a smaller difference is called the seeds' noise


# What cannot change the result of a run: where things lie, what it tolerates, what it tells and when it looks.
HARMLESS = (
    *(key for key in FREE if key not in ("train.epochs", "train.accumulate")),
    *("train.validate_", "train.sample_"),
)


DECISIVE = ("size", "manifest_sha256", "world_size", "precision", "code", "versions")  # facts that can


def comparable(a: Entry, b: Entry) -> list[str]:
    """Reasons why their scores must not be compared; none: they may be."""
    if a.kind != b.kind:
        return ["one is scored by its drawings, the other only during its training: draw with `dist-sketch infer`"]
    lost = [f"{e.name} has no scores" for e in (a, b) if e.kind == "output" and e.scores is None]
    lost += [f"{e.name} {e.unfinished}" for e in (a, b) if e.kind == "run" and e.unfinished]
    if lost:
        return lost
    mine, other = _terms(a), _terms(b)
    reasons = []
    for what in mine:
        if mine[what] == other[what] or (what.startswith("FID") and None in (mine[what], other[what])):
            continue  # without weights there is no FID that could be compared
        short = [str(v)[:12] if "weights" in what else str(v) for v in (mine[what], other[what])]
        plain = what in ("other faces", "another data set", "other pictures under the same names")
        reasons.append(what if plain else f"{what}: {short[0]} and {short[1]}")
        if plain or what == "n":
            break  # the rest follows from it
    return reasons


def _terms(entry: Entry) -> dict[str, Any]:
    """What scores depend on besides the drawing, in the order in which it is told."""
    config, facts = entry.config, entry.facts
    if entry.scores is None:
        return {
            "another data set": facts.get("manifest_sha256"),
            "size in px": facts.get("size"),
            "channels": config.get("data.channels"),
            "train.validate_limit": config.get("train.validate_limit"),
        }
    scores, about = entry.scores, entry.about
    settings = {k: v if isinstance(v, dict) else {} for k, v in scores["settings"].items()}
    fid, base = settings.get("fid", {}), scores["baselines"]
    exact = about.get("format") == "png" and str(about.get("output_size")) in ("network", str(about.get("size")))
    from_files = scores["settings"].get("source") == "files" and not exact
    paired = [(base.get(b) or {}).get(k) for b in ("blank", "input") for k in ("ssim", "l1", "psnr")]
    return {
        "split": about.get("split"),
        "n": scores["n"],
        "other faces": sorted(entry.names),
        "size in px": scores.get("size"),
        # These depend on nothing but the lines and the real sketches.
        "other pictures under the same names": [None if v is None else round(float(v), 6) for v in paired],
        "scored": f"from {about.get('format')} files of size {about.get('output_size')}" if from_files else "exactly",
        "SSIM's settings": settings.get("ssim"),
        "FID's weights": fid.get("weights_sha256"),
        "FID's resize": fid.get("resize"),
        "FID's dims": fid.get("dims"),
        "KID's settings": settings.get("kid"),
    }


def classes(found: list[Entry]) -> list[list[Entry]]:
    """Parts within which all scores may be compared with each other; entries without scores are in none."""
    parts: list[list[Entry]] = []
    for entry in found:
        if comparable(entry, entry):
            continue
        for part in parts:
            if not any(comparable(entry, other) for other in part):
                part.append(entry)
                break
        else:
            parts.append([entry])
    return parts


class Group(NamedTuple):
    """Entries that differ only in their seed."""

    label: str
    entries: list[Entry]


def groups(found: list[Entry]) -> list[Group]:
    """The entries in groups that differ in nothing but the seed, in the order of their first members."""
    members: dict[str, list[Entry]] = {}
    for entry in found:
        again = 0  # the same seed once more is no further seed
        while any(e.seed == entry.seed for e in members.get(f"{again}{_identity(entry)}", [])):
            again += 1
        members.setdefault(f"{again}{_identity(entry)}", []).append(entry)
    labels: list[str] = []
    for part in members.values():
        label = _common([e.name for e in part])
        taken = {*labels, *(e.name for e in found if e not in part)}
        labels.append(f"{part[0].name} and {len(part) - 1} more" if not label or label in taken else label)
    return [Group(label, part) for label, part in zip(labels, members.values(), strict=True)]


def _identity(entry: Entry) -> str:
    """What two seeds of one setting have in common."""
    about = {k: entry.about.get(k) for k in ("split", "size", "output_size", "format", "mode")}
    facts = {k: entry.facts.get(k) for k in DECISIVE}
    terms = _terms(entry)
    config = essential(entry.config, (*HARMLESS, "train.seed"))
    step = "chosen" if entry.chosen else entry.step
    return json.dumps([entry.kind, step, config, about, facts, terms], sort_keys=True, default=str)


def _common(names: list[str]) -> str:
    """What names of several seeds begin with, without the seed's own mark: a-s10, a-s11 -> a."""
    if len(names) == 1:
        return names[0]
    length = next((i for i, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), None)
    prefix = min(names, key=len) if length is None else names[0][:length]
    if any(name[len(prefix) : len(prefix) + 1].isdigit() for name in names):
        prefix = prefix.rstrip("0123456789")
    return re.sub(r"([-_. ]s|[-_. ]?seed)?[-_. =/]*$", "", prefix)


def value(entry: Entry, variant: str, metric: str) -> float | None:
    """One score.

    Args:
        variant: of an output "raw", "denoised", or a baseline ("blank", "input", "reference"); of any run "val" (the
            last score of the validation split during training) or "best" (the best one).
        metric: a key of METRICS.
    """
    if variant in ("val", "best"):
        scored = [r[f"val/{metric}"] for r in entry.records if isinstance(r.get(f"val/{metric}"), int | float)]
        if not scored or variant == "val":
            return float(scored[-1]) if scored else None
        return float(max(scored) if _sign(metric) > 0 else min(scored))
    if entry.scores is None:
        return None
    part = entry.scores[variant] if variant in ("raw", "denoised") else entry.scores["baselines"].get(variant)
    found = (part or {}).get(metric)
    return None if found is None else float(found)


def _sign(metric: str) -> int:
    return next((m.sign for m in METRICS if m.key == metric), -1)


def mean_sd(group: Group, variant: str, metric: str) -> tuple[float, float | None, int]:
    """Mean and standard deviation (n - 1) over a group's seeds, and their number.

    Returns:
        (mean, sd, n): NaN and 0 seeds where nothing was scored; sd None for fewer than two seeds.
    """
    values = [v for e in group.entries if (v := value(e, variant, metric)) is not None]
    if not values:
        return math.nan, None, 0
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values)


class Difference(NamedTuple):
    """Of two groups' means, and what may be said of it."""

    value: float
    error: float | None  # standard error; None for one seed each
    mood: Literal["better", "worse", "noise", "unknown"]  # unknown: one seed each tell nothing of the seeds' noise


def difference(group: Group, other: Group, variant: str, metric: str) -> Difference | None:
    """By how much `group` is above `other`; None if one of them has no such score, or they must not be compared.

    It counts as better or worse if Student's t-test (two-sided, one variance for both) rejects chance at CONFIDENCE.
    """
    if any(comparable(a, b) for a in group.entries for b in other.entries):
        return None
    (a, sd_a, n_a), (b, sd_b, n_b) = mean_sd(group, variant, metric), mean_sd(other, variant, metric)
    if not n_a or not n_b:
        return None
    freedom = n_a + n_b - 2
    if not freedom:
        return Difference(a - b, None, "unknown")
    variance = ((n_a - 1) * (sd_a or 0.0) ** 2 + (n_b - 1) * (sd_b or 0.0) ** 2) / freedom
    error = math.sqrt(variance * (1 / n_a + 1 / n_b))
    rounding = 1e-12 * max(abs(a), abs(b))  # seeds that agree to the last digit have no spread at all
    if abs(a - b) <= error * stats.t.ppf((1 + CONFIDENCE) / 2, freedom) + rounding:
        return Difference(a - b, error, "noise")
    return Difference(a - b, error, "better" if (a - b) * _sign(metric) > 0 else "worse")
