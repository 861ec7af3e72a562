"""Decide whether an approach is as good as another one, within a margin.

Two one-sided tests on the difference: one rejects a loss of the margin or more (non-inferiority),
the other one rejects a smaller loss. Schuirmann, D. J. (1987); Piaggio, G. et al. (2012). Reporting
of Noninferiority and Equivalence Randomized Trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from kinopoisk_ft.statistics.bootstrap import ALPHA
from kinopoisk_ft.statistics.comparison import Comparison
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.statistics.pairs import Difference, Pair, correct_holm

# Losses of weighted F1 that matter: the default, and a smaller one that is shown as well.
MARGIN, STRICT_MARGIN = 0.02, 0.01
# The numbers of reviews and seeds are those with which a verdict has this probability.
POWER = 0.8
# If the observed difference is close to the margin, no realistic number decides.
LARGEST = 100.0

Verdict = Literal["as good", "worse", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The verdict on a difference a - b.

    Args:
        verdict: "as good" if a loss of the margin or more is rejected, "worse" if a smaller loss is
            rejected, otherwise "undecided".
        p_as_good: p-value for the null hypothesis of a loss of at least the margin.
        p_worse: p-value for the null hypothesis of a smaller loss.
        p_equivalent: p-value for the null hypothesis that a and b differ by at least the margin.
        more_reviews: how many times as many test reviews would decide, if the true difference is
            the observed one. None if a verdict is reached, or if no realistic number decides.
        more_seeds: how many times as many seeds would decide; None as for `more_reviews`.
    """

    verdict: Verdict
    p_as_good: float
    p_worse: float
    p_equivalent: float
    more_reviews: float | None
    more_seeds: float | None

    def count_more(self, pair: Pair) -> tuple[int | None, int | None]:
        """Return how many more test reviews, and how many more seeds, would decide."""
        return (
            _count_more(self.more_reviews, pair.reviews), _count_more(self.more_seeds, pair.seeds)
        )  # fmt: skip


def _count_more(factor: float | None, count: int) -> int | None:
    return None if factor is None else math.ceil(count * (factor - 1))


def decide_against(
    reference: str, names: Sequence[str], comparison: Comparison, margin: float = MARGIN
) -> dict[str, Decision]:
    """Decide of each approach whether it is as good as the reference, in weighted F1.

    Approaches that were not compared with the reference are left out.
    """
    return decide_together([(reference, names, comparison)], margin)[0]


def decide_together(
    groups: Sequence[tuple[str, Sequence[str], Comparison]], margin: float
) -> list[dict[str, Decision]]:
    """Return `decide_against` for several (reference, names, comparison).

    The p-values are corrected over all groups, for example those with different numbers of labels.
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
    """Decide on several differences at once.

    The p-values of the two one-sided tests are corrected over all differences (Holm, S., 1979).

    Args:
        differences: a - b in the same metric for several approaches a.
        margin: the loss that would matter, for example 0.02.
    """
    if not differences:
        return []
    as_good = correct_holm([_p_above(d.total.resampled, -margin) for d in differences])
    worse = correct_holm([_p_above(-d.total.resampled, margin) for d in differences])
    found = []
    for difference, p_as_good, p_worse in zip(differences, as_good, worse, strict=True):
        verdict: Verdict = "undecided"
        if p_as_good <= ALPHA:
            verdict = "as good"
        elif p_worse <= ALPHA:
            verdict = "worse"
        drawn = difference.total.resampled
        reviews, seeds = (None, None) if verdict != "undecided" else _needed(difference, margin)
        found.append(
            Decision(
                verdict=verdict,
                p_as_good=p_as_good,
                p_worse=p_worse,
                p_equivalent=max(_p_above(drawn, -margin), _p_above(-drawn, -margin)),
                more_reviews=reviews,
                more_seeds=seeds,
            )
        )
    return found


def _p_above(resampled: np.ndarray, bound: float) -> float:
    """Return the p-value for the null hypothesis that the difference is at most `bound`."""
    return float((1 + np.sum(resampled <= bound)) / (len(resampled) + 1))


def _needed(difference: Difference, margin: float) -> tuple[float | None, float | None]:
    """Return the factors by which the numbers of reviews and of seeds must grow, each alone."""
    found = difference.total
    sigmas = stats.norm.ppf(1 - ALPHA) + stats.norm.ppf(POWER)
    target = ((found.mean + margin) / sigmas) ** 2
    return (
        _factor(found.review_variance, target - found.seed_variance),
        _factor(found.seed_variance, target - found.review_variance),
    )


def _factor(now: float, allowed: float) -> float | None:
    # A factor below 1 comes from the normal approximation, when few seeds give wide intervals.
    factor = now / allowed if allowed > 0 else 0.0
    return factor if 1 < factor <= LARGEST else None
