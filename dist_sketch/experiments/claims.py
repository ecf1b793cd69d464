"""Whether a claim holds: differences between methods, compared with the noise over their seeds."""

from itertools import combinations, pairwise
from statistics import fmean
from typing import Literal, NamedTuple

from dist_sketch.experiments.presets import MEASURES, Claim
from dist_sketch.reports.compare.scores import CONFIDENCE, Effect, mean_text, t_test
from dist_sketch.reports.page import conjoin

Word = Literal["held", "not held", "within noise over the seeds", "one seed, no noise known", "not measured"]
NOISE: Word = "within noise over the seeds"
WORDS: dict[int, Word] = {-1: "not held", 0: NOISE, 1: "held"}  # by the sign of an effect in the claimed direction


class Values(NamedTuple):
    """What was measured for one row of a claim."""

    label: str
    run: str  # equal for two rows if the same weights drew both
    seeds: dict[int, float]


def effect(before: Values, after: Values, confidence: float) -> Effect:
    """How far `after` is above `before`; paired by the seeds that both have only if the same weights drew both."""
    pairs = [after.seeds[s] - before.seeds[s] for s in before.seeds if s in after.seeds]
    if before.run == after.run and pairs:
        found = t_test(pairs)
    else:
        found = t_test(list(after.seeds.values()), list(before.seeds.values()))
    return found.at(confidence)


def comparisons(claim: Claim) -> int:
    """How many differences a claim is about."""
    count = len(claim.rows)
    return count * (count - 1) // 2 if claim.expect == "same" else max(1, count - 1)


def confidence_of(tests: int) -> float:
    """The confidence for each of so many tests, so that chance moves any of them as seldom as one (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / tests


def judge(claim: Claim, rows: list[Values], tests: int = 1) -> tuple[Word, str]:
    """The verdict on a claim about these rows, and a sentence with the values behind it.

    Args:
        tests: comparisons of all claims that are judged together.
    """
    label, digits = MEASURES[claim.measure]
    sure = confidence_of(tests)
    empty = [r.label for r in rows if not r.seeds]
    if empty:
        return "not measured", f"There are no values of {label} for {conjoin(empty)}"
    if claim.expect == "below":
        word, details = _below(claim, rows[0], sure)
    elif claim.expect == "same":
        word, details = _same(claim, rows, sure)
    elif claim.by:
        word, details = _by(claim, rows[0], rows[1], sure)
    else:
        word, details = _direction(claim, rows, sure)
    if all(len(r.seeds) == 1 for r in rows):
        word = "one seed, no noise known"
    means = ", ".join(f"{row.label} {mean_text(list(row.seeds.values()), digits)}" for row in rows)
    return word, f"{label}: {means}; {details}"


def _below(claim: Claim, row: Values, sure: float) -> tuple[Word, str]:
    assert claim.limit is not None
    margin = t_test([claim.limit - v for v in row.seeds.values()]).at(sure)
    return WORDS[margin.sign], f"{'below' if margin.mean > 0 else 'not below'} {claim.limit:g}"


def _same(claim: Claim, rows: list[Values], sure: float) -> tuple[Word, str]:
    """Compares all pairs of rows: equal if each confidence interval of a difference is within the limit."""
    assert claim.limit is not None
    effects = [effect(a, b, sure) for a, b in combinations(rows, 2)]
    if any(e.sign and abs(e.mean) >= claim.limit for e in effects):
        return "not held", f"they differ by {claim.limit:g} or more"
    if all(abs(e.mean) + (e.margin or 0) < claim.limit for e in effects):
        return "held", f"they differ by less than {claim.limit:g}"
    return NOISE, f"they may or may not differ by {claim.limit:g} or more"


def _direction(claim: Claim, rows: list[Values], sure: float) -> tuple[Word, str]:
    """Compares each row with the one before it."""
    wanted = 1 if claim.expect == "higher" else -1
    effects = [effect(a, b, sure) for a, b in pairwise(rows)]
    right = sum(wanted * e.mean > 0 for e in effects)
    summary = f"{right} of {len(effects)} steps as claimed"
    if right in (0, len(effects)):
        summary = "as claimed" if right else "not as claimed"
    changes = conjoin([_change(a, b) for a, b in pairwise(rows)])
    return WORDS[min(wanted * e.sign for e in effects)], f"{changes}: {summary}"


def _change(before: Values, after: Values) -> str:
    was, now = fmean(before.seeds.values()), fmean(after.seeds.values())
    if was <= 0:  # as KID may be: there is no percentage
        return "higher" if now > was else "lower" if now < was else "equal"
    return f"{100 * (now - was) / was:+.1f} %".replace("-", "−")


def _by(claim: Claim, before: Values, after: Values, sure: float) -> tuple[Word, str]:
    """The change as a share of the first row's mean."""
    was = fmean(before.seeds.values())
    if was <= 0:
        return "not held", "a share of a value that is not above 0 has no meaning"
    change, (least, most) = effect(before, after, sure), claim.by
    share = (1 if claim.expect == "higher" else -1) * change.mean / was
    noise = (change.margin or 0.0) / was
    plus = "" if change.margin is None else f" ± {100 * noise:.1f}"
    measured = f"{claim.expect} by {100 * share:.1f}{plus} %".replace("-", "−")
    details = f"{measured}, claimed: {100 * least:g} to {100 * most:g} %"
    if change.sign and least <= share <= most:
        return "held", details
    possible = share - noise <= most and share + noise >= least
    return NOISE if possible or not change.sign else "not held", details
