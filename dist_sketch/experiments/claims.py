"""Whether a claim holds: differences between methods against the noise over their seeds."""

import math
from itertools import combinations, pairwise
from statistics import fmean, stdev
from typing import Literal, NamedTuple

from scipy.stats import t as student

from dist_sketch.experiments.measures import KINDS, MeasureFormat
from dist_sketch.experiments.presets import Claim
from dist_sketch.reports.compare.scores import CONFIDENCE
from dist_sketch.reports.page import conjoin, figure

Word = Literal["held", "not held", "within noise over the seeds", "one seed, no noise known", "not measured"]


WORDS: tuple[Word, Word, Word] = ("not held", "within noise over the seeds", "held")


class Values(NamedTuple):
    """What one row of a claim measured."""

    label: str
    run: str  # rows with the same one are drawings of the same weights
    seeds: dict[int, float]


class Verdict(NamedTuple):
    """What became of a claim."""

    word: Word
    sentence: str  # the figures behind it


class Effect(NamedTuple):
    """A difference, and the half width of its confidence interval; None where one seed each tells nothing of it."""

    mean: float
    noise: float | None

    @property
    def sign(self) -> int:
        """+1 or -1 if it is beyond the noise, else 0."""
        beyond = self.mean != 0 and (self.noise is None or abs(self.mean) > self.noise)
        return 0 if not beyond else 1 if self.mean > 0 else -1


def effect(before: Values, after: Values) -> Effect:
    """By how much `after` is above `before`: Student's t, paired by seed only where the weights are the same."""
    if before.run == after.run:
        return single([after.seeds[s] - before.seeds[s] for s in before.seeds if s in after.seeds])
    a, b = list(before.seeds.values()), list(after.seeds.values())
    freedom = len(a) + len(b) - 2
    if not freedom:
        return Effect(b[0] - a[0], None)
    squares = sum((len(x) - 1) * stdev(x) ** 2 for x in (a, b) if len(x) > 1)
    error = math.sqrt(squares / freedom * (1 / len(a) + 1 / len(b)))
    return Effect(fmean(b) - fmean(a), error * _quantile(freedom))


def single(values: list[float]) -> Effect:
    """A mean against 0."""
    n = len(values)
    return Effect(fmean(values), _quantile(n - 1) * stdev(values) / n**0.5 if n > 1 else None)


def _quantile(freedom: int) -> float:
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom))


def judge(claim: Claim, rows: list[Values]) -> Verdict:
    """Compares the rows of a claim, in their order."""
    kind = KINDS[claim.measure]
    empty = [r.label for r in rows if not r.seeds]
    if empty:
        return Verdict("not measured", f"There are no figures of {kind.label} for {conjoin(empty)}")
    if claim.expect == "below":
        word, more = _below(claim, rows[0])
    elif claim.expect == "same":
        word, more = _same(claim, rows)
    elif claim.by:
        word, more = _by(claim, *rows)
    else:
        word, more = _direction(claim, rows)
    if all(len(r.seeds) == 1 for r in rows):
        word = "one seed, no noise known"
    shown = ", ".join(f"{r.label} {_text(r, kind)}" for r in rows)
    return Verdict(word, f"{kind.label}: {shown}; {more}")


def _below(claim: Claim, row: Values) -> tuple[Word, str]:
    assert claim.limit is not None
    margin = single([claim.limit - v for v in row.seeds.values()])
    return WORDS[margin.sign + 1], f"{'below' if margin.mean > 0 else 'not below'} {claim.limit:g}"


def _same(claim: Claim, rows: list[Values]) -> tuple[Word, str]:
    """Each row against each other one: alike if the whole interval of the difference lies below the limit."""
    assert claim.limit is not None
    effects = [effect(a, b) for a, b in combinations(rows, 2)]
    if any(e.sign and abs(e.mean) >= claim.limit for e in effects):
        return "not held", f"they differ by {claim.limit:g} or more"
    alike = all(abs(e.mean) + (e.noise or 0) < claim.limit for e in effects)
    return (
        ("held", f"they differ by less than {claim.limit:g}")
        if alike
        else ("within noise over the seeds", f"whether they differ by {claim.limit:g} or more cannot be told")
    )


def _direction(claim: Claim, rows: list[Values]) -> tuple[Word, str]:
    """Each row against the one before it."""
    wanted = 1 if claim.expect == "higher" else -1
    effects = [effect(a, b) for a, b in pairwise(rows)]
    signs = [wanted * e.sign for e in effects]
    word = WORDS[2 if min(signs) > 0 else 0 if min(signs) < 0 else 1]
    right = sum(wanted * e.mean > 0 for e in effects)
    words = (
        "as claimed"
        if right == len(effects)
        else "not as claimed"
        if not right
        else f"{right} of {len(signs)} steps as claimed"
    )
    return word, f"{conjoin([_change(a, b) for a, b in pairwise(rows)])}: {words}"


def _change(before: Values, after: Values) -> str:
    was, now = fmean(before.seeds.values()), fmean(after.seeds.values())
    if was <= 0:  # KID may be
        return "higher" if now > was else "lower" if now < was else "equal"
    return f"{100 * (now - was) / was:+.1f} %".replace("-", "−")


def _by(claim: Claim, before: Values, after: Values) -> tuple[Word, str]:
    """The change as a share of the first row's mean."""
    was = fmean(before.seeds.values())
    if was <= 0:
        return "not held", "shares of a value that is not above 0 mean nothing"
    change, (least, most) = effect(before, after), claim.by
    share = (1 if claim.expect == "higher" else -1) * change.mean / was
    noise = (change.noise or 0.0) / was
    plus = "" if change.noise is None else f" ± {100 * noise:.1f}"
    more = f"{claim.expect} by {100 * share:.1f}{plus} %, claimed: {100 * least:g} to {100 * most:g} %".replace(
        "-", "−"
    )
    if not change.sign or not least <= share <= most:
        possible = share - noise <= most and share + noise >= least
        return "within noise over the seeds" if not change.sign or possible else "not held", more
    return "held", more


def _text(row: Values, kind: MeasureFormat) -> str:
    values = list(row.seeds.values())
    text = figure(fmean(values), kind.digits)
    return f"{text} ± {figure(stdev(values), kind.digits)}" if len(values) > 1 else text


def rule(seeds: int) -> str:
    """How the verdicts come about, for the page."""
    if seeds < 2:
        return (
            "One seed: how far chance alone moves the figures is not known, so nothing is said to hold. Run again with "
            "--seeds 3 or more: what is done stays."
        )
    return (
        f"± is the standard deviation over {seeds} seeds. A claim is held, or not held, where Student's t-test over "
        f"the seeds rejects chance at {100 * CONFIDENCE:g} % (paired by seed where the weights are the same), else it "
        f"is within noise; a claim that nothing changes is held where the whole interval of the difference lies below "
        f"the limit that is named. With {seeds} seeds of each method, that takes a difference of "
        f"{_quantile(2 * seeds - 2):.1f} standard errors ({_quantile(seeds - 1):.1f} where paired): more seeds, "
        "surer words."
    )
