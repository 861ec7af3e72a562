"""Decide whether an approach is as good as another one, within a margin.

The deficit is the score of the other approach minus the score of this approach. One test can show
that the deficit is smaller than the margin (non-inferiority: "as good"). The other test can show
that it is larger ("worse"). Both tests are one-sided. Schuirmann, D. J. (1987); Piaggio, G. et al.
(2012). Reporting of Noninferiority and Equivalence Randomized Trials.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from kinopoisk_ft.statistics.bootstrap import ALPHA, RESAMPLES
from kinopoisk_ft.statistics.comparison import Comparison
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.statistics.pairs import Difference, correct_holm
from kinopoisk_ft.statistics.seeds import draw_seed_errors

# The default margin in weighted F1, and a smaller margin for which reports also show verdicts.
MARGIN, STRICT_MARGIN = 0.02, 0.01
# Probability of a verdict with the added reviews or seeds of `Decision`.
POWER = 0.8
# The numbers of reviews and seeds are increased at most by this factor. If the observed deficit is
# close to the margin, the needed numbers are huge.
LARGEST = 100
FACTORS = np.geomspace(1, LARGEST, 1001)[1:]
# Errors of a normal distribution, in standard deviations.
NORMAL = stats.norm.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES)
NO_MORE = (None, None)

Verdict = Literal["as good", "worse", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The verdict on whether a is as good as b. The deficit of a is b - a.

    Args:
        verdict: "as good" if `p_as_good` is at most 5%, "worse" if `p_worse` is at most 5%,
            otherwise "undecided".
        p_as_good: p-value for the null hypothesis that the deficit is at least the margin.
        p_worse: p-value for the null hypothesis that the deficit is at most the margin.
        p_equivalent: p-value for the null hypothesis that a and b differ by at least the margin. It
            is not corrected for multiple tests; the other p-values are.
        more_reviews: factor by which the number of test reviews must grow to make a verdict likely.
            It takes Holm's correction into account, and assumes that the true difference and
            variances are equal to the observed ones. None if there is a verdict already, or if
            LARGEST times as many reviews would not be enough.
        more_seeds: the number of additional seeds of each approach that would do the same. None if
            there is a verdict already, if LARGEST times as many seeds would not be enough, or if an
            approach has only one seed, so that the number is unknown.
        low, high: one-sided 95% bounds of a - b, which is the negative deficit. They hold
            simultaneously for all approaches, and agree with the verdict: `low` is at least -margin
            if a is as good, and `high` is at most -margin if a is worse. If the verdict is
            "undecided", -margin is between the bounds. See `_lower_bounds`.
    """

    verdict: Verdict
    p_as_good: float
    p_worse: float
    p_equivalent: float
    more_reviews: float | None
    more_seeds: int | None
    low: float
    high: float

    def count_more(self, reviews: int) -> int | None:
        """Return how many test reviews to add to the present ones, for `more_reviews`.

        The estimate is rough, so it is rounded up to two significant digits.
        """
        if self.more_reviews is None:
            return None
        count = math.ceil(reviews * (self.more_reviews - 1))
        unit = 10 ** max(0, len(str(count)) - 2)
        return math.ceil(count / unit) * unit


def decide_against(
    reference: str, names: Sequence[str], comparison: Comparison, margin: float = MARGIN
) -> dict[str, Decision]:
    """Decide for each approach whether its weighted F1 is as good as the reference's.

    Approaches that were not compared with the reference are left out.
    """
    return decide_together([(reference, names, comparison)], margin)[0]


def decide_together(
    groups: Sequence[tuple[str, Sequence[str], Comparison]], margin: float
) -> list[dict[str, Decision]]:
    """Make the decisions of `decide_against` for several groups of approaches.

    The p-values are corrected for multiple tests, over all groups.

    Args:
        groups: (reference, names, comparison) of each group. For example, there is one group for
            each number of labels.
    """
    pairs = [
        (number, name, pair.differences[HEADLINE])
        for number, (reference, names, comparison) in enumerate(groups)
        for name in names
        if name != reference and (pair := comparison.pair(name, reference))
    ]
    found: list[dict[str, Decision]] = [{} for _ in groups]
    decisions = decide([difference for *_, difference in pairs], margin)
    for (number, name, _), decision in zip(pairs, decisions, strict=True):
        found[number][name] = decision
    return found


def decide(differences: Sequence[Difference], margin: float = MARGIN) -> list[Decision]:
    """Decide, for each difference a - b, whether approach a is as good as approach b.

    The p-values are corrected over all differences (Holm, S., 1979). `p_as_good` and `p_worse`
    are corrected separately.

    Args:
        differences: the differences a - b, all in the same metric.
        margin: the smallest deficit that matters, for example 0.02.
    """
    if not differences:
        return []
    resampled = [d.total.resampled for d in differences]
    deficits = [-one for one in resampled]
    as_good = correct_holm([_p_above(one, -margin) for one in resampled])
    # "Worse" is the same test with opposite signs: the deficit must be above the margin.
    worse = correct_holm([_p_above(one, margin) for one in deficits])
    levels = _level(as_good), _level(worse)
    lows = _lower_bounds(resampled, as_good, -margin)
    highs = [-low for low in _lower_bounds(deficits, worse, margin)]
    found = []
    for difference, drawn, p_as_good, p_worse, low, high in zip(
        differences, resampled, as_good, worse, lows, highs, strict=True
    ):
        verdict: Verdict = "undecided"
        if p_as_good <= ALPHA:
            verdict = "as good"
        elif p_worse <= ALPHA:
            verdict = "worse"
        # More data would probably give the verdict that the observed difference suggests.
        level = levels[0] if difference.mean > -margin else levels[1]
        reviews, seeds = _needed(difference, margin, level) if verdict == "undecided" else NO_MORE
        found.append(
            Decision(
                verdict=verdict,
                p_as_good=p_as_good,
                p_worse=p_worse,
                # Two one-sided tests: both null hypotheses must be rejected (Schuirmann, 1987).
                p_equivalent=max(_p_above(drawn, -margin), _p_above(-drawn, -margin)),
                more_reviews=reviews,
                more_seeds=seeds,
                # F1 is in [0, 1], so a difference is in [-1, 1].
                low=max(-1.0, low),
                high=min(1.0, high),
            )
        )
    return found


def _lower_bounds(resampled: Sequence[np.ndarray], ps: Sequence[float], edge: float) -> list[float]:
    """Return simultaneous lower 95% bounds that agree with Holm's tests.

    Each test has the null hypothesis that a difference is at most `edge`. All bounds hold together
    with a probability of 95%.

    - If k hypotheses are not rejected, the bounds of their differences have the level 5% / k. These
      bounds are at most `edge`. All other bounds are equal to `edge`, because Holm's procedure
      shows only that these differences are above it.
    - If all m hypotheses are rejected, each bound has the level 5% / m, but is at least `edge`.

    Strassburger, K. and Bretz, F. (2008). Compatible simultaneous lower confidence bounds for the
    Holm procedure.

    Args:
        resampled: the resamples of each of the m differences, (resamples,) each.
        ps: corrected p-values of the m tests.
    """
    rejected = [p <= ALPHA for p in ps]
    level = _level(ps)
    if not all(rejected):
        return [
            edge if known else _bound(one, level)
            for one, known in zip(resampled, rejected, strict=True)
        ]
    return [max(edge, _bound(one, level)) for one in resampled]


def _level(ps: Sequence[float]) -> float:
    """Return the significance level at which Holm's procedure stops.

    The level is 5% divided by the number of hypotheses that are not rejected. If all m hypotheses
    are rejected, there is no such level, and the result is 5% / m. `ps` are the corrected p-values.
    """
    return ALPHA / (sum(p > ALPHA for p in ps) or len(ps))


def _bound(resampled: np.ndarray, level: float) -> float:
    """Return the lower confidence bound of a difference, with the error probability `level`.

    For each x below the bound, `_p_above(resampled, x)` is at most `level`.
    """
    # For x below the `place`-th smallest resample, at most `place - 1` resamples are at most x, so
    # the p-value of `_p_above` is at most place / (resamples + 1).
    place = math.floor(level * (len(resampled) + 1))
    # With too few resamples for the level, nothing is known: scores are in [0, 1].
    return float(np.partition(resampled, place - 1)[place - 1]) if place else -1.0


def _p_above(resampled: np.ndarray, bound: float) -> float:
    """Return the p-value for the null hypothesis that the difference is at most `bound`."""
    # As in `bootstrap.p_value`, the p-value is never 0.
    return float((1 + np.sum(resampled <= bound)) / (len(resampled) + 1))


def _needed(difference: Difference, margin: float, level: float) -> tuple[float | None, int | None]:
    """Return `more_reviews` and `more_seeds` for tests at the significance level `level`.

    See `Decision`. The factor for reviews assumes the present number of seeds, and vice versa.
    """
    found = difference.total
    distance = abs(found.mean + margin)
    errors = draw_seed_errors(found.spreads, RESAMPLES)
    # The part of the seed variance that does not depend on the reviews.
    fixed = 1 - found.own_variance / found.seed_variance if found.seed_variance else 0.0

    def is_enough(review_variance: float, errors: np.ndarray) -> bool:
        # The quantile for `level` is the distance at which the test rejects. The observed distance
        # is above it with the probability POWER if the true one is larger by the second quantile.
        drawn = math.sqrt(review_variance) * NORMAL + errors
        return bool(np.quantile(drawn, [1 - level, POWER]).sum() <= distance)

    def reviews_are_enough(factor: float) -> bool:
        scale = math.sqrt(fixed + (1 - fixed) / factor)
        return is_enough(found.review_variance / factor, scale * errors)

    def seeds_are_enough(more: int) -> bool:
        spreads = [(spread, count + more) for spread, count in found.spreads]
        return is_enough(found.review_variance, draw_seed_errors(spreads, RESAMPLES))

    counts = [count for _, count in found.spreads]
    added = range(1, (LARGEST - 1) * max(counts) + 1) if min(counts) > 1 else range(0)
    reviews = bisect_left(FACTORS, True, key=reviews_are_enough)
    seeds = bisect_left(added, True, key=seeds_are_enough)
    return (
        float(FACTORS[reviews]) if reviews < len(FACTORS) else None,
        added[seeds] if seeds < len(added) else None,
    )
