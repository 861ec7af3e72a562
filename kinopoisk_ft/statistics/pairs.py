"""Compare two approaches with a paired bootstrap, McNemar's test and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from statsmodels.stats.contingency_tables import mcnemar

from kinopoisk_ft.statistics.bootstrap import Interval, p_value, percentiles
from kinopoisk_ft.statistics.seeds import RunScores, Total, subtract

# With fewer discordant reviews, the chi-squared approximation is poor and the test is exact.
FEW = 25


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """The difference a - b in one metric.

    Args:
        p_holm: p-value after Holm's correction over all pairs.
        total: the difference with its resamples and variances.
    """

    p: float
    p_holm: float
    total: Total = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """The result of McNemar's test of two approaches a and b (McNemar, Q., 1947).

    The test ignores the variance between seeds. With several pairs of runs, `only_a` and `only_b`
    are means over these pairs.

    Args:
        only_a: number of reviews that a classifies correctly and b does not.
        only_b: number of reviews that b classifies correctly and a does not.
    """

    only_a: float
    only_b: float
    p: float
    p_holm: float


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The comparison of two approaches.

    Args:
        paired: True if both approaches have the same test reviews. Otherwise, the reviews are
            treated as independent samples.
        same_seeds: True if runs are paired by seed.
        measured: True if both approaches have several seeds. Only then do the intervals include the
            variance between the seeds of both approaches.
        reviews: number of test reviews of a or b, whichever has more.
        mcnemar: None if the test reviews differ.
    """

    a: str
    b: str
    paired: bool
    same_seeds: bool
    measured: bool
    reviews: int
    differences: dict[str, Difference]
    mcnemar: McNemar | None

    def reversed(self) -> Pair:
        """Return the comparison of b with a."""
        # The tests are two-sided, so the p-values of the reversed pair are the same.
        differences = {
            metric: replace(
                d,
                mean=-d.mean,
                low=-d.high,
                high=-d.low,
                total=d.total._replace(mean=-d.mean, resampled=-d.total.resampled),
            )
            for metric, d in self.differences.items()
        }
        test = self.mcnemar
        if test:
            test = replace(test, only_a=test.only_b, only_b=test.only_a)
        return replace(self, a=self.b, b=self.a, differences=differences, mcnemar=test)


def difference(a: RunScores, b: RunScores, *, same_seeds: bool) -> Difference:
    """Return mean(a) - mean(b) with an interval and a p-value.

    With `same_seeds`, a and b must have the same seeds in the same order.
    """
    found = subtract(a, b, same_seeds=same_seeds)
    interval = percentiles(found.mean, found.resampled)
    p = p_value(found.resampled)
    return Difference(found.mean, interval.low, interval.high, p=p, p_holm=p, total=found)


def mcnemar_of(
    right_a: np.ndarray,
    right_b: np.ndarray,
    *,
    same_seeds: bool,
    groups: np.ndarray | None = None,
) -> McNemar:
    """Run McNemar's test on two approaches.

    The p-values of several pairs of runs are dependent, so they are combined as twice their median
    (Rüschendorf, L. (1982); DiCiccio, C. J. et al. (2020)).

    Args:
        right_a: (seeds, N) bool, True where approach a classifies a review correctly.
        right_b: the same for b.
        same_seeds: True if runs are paired in the given order. Otherwise, every run of a is paired
            with every run of b.
        groups: (N,) group of each review. If given, the p-value comes from a permutation test that
            swaps a and b for whole groups. If each group has one review, this is McNemar's exact
            test. With a single group, reviews are swapped, as without groups.
    """
    if same_seeds:
        run_pairs = list(zip(right_a, right_b, strict=True))
    else:
        run_pairs = [(a, b) for a in right_a for b in right_b]
    only_a = np.array([np.sum(a & ~b) for a, b in run_pairs])
    only_b = np.array([np.sum(b & ~a) for a, b in run_pairs])
    if groups is None or len(np.unique(groups)) == 1:
        ps = [_mcnemar(int(x), int(y)) for x, y in zip(only_a, only_b, strict=True)]
    else:
        _, places = np.unique(groups, return_inverse=True)
        # NumPy cannot subtract Boolean arrays, so `a` is converted to float64.
        ps = [_flip_signs(np.bincount(places, a * 1.0 - b)) for a, b in run_pairs]
    p = ps[0] if len(ps) == 1 else min(1.0, 2 * float(np.median(ps)))
    return McNemar(only_a=float(only_a.mean()), only_b=float(only_b.mean()), p=p, p_holm=p)


def _mcnemar(only_a: int, only_b: int) -> float:
    # Only discordant reviews matter, so the diagonal is 0. The exact test ignores `correction`,
    # which is Edwards' continuity correction of the chi-squared test.
    table = [[0, only_a], [only_b, 0]]
    return float(mcnemar(table, exact=only_a + only_b < FEW, correction=True).pvalue)


def _flip_signs(differences: np.ndarray) -> float:
    """Return the exact p-value of a sign-flip permutation test.

    `differences` is (groups,): in each group, the number of reviews that only approach A classifies
    correctly, minus the number that only approach B classifies correctly.
    """
    sizes = np.abs(differences).astype(int)
    # Probabilities of the sums -sum(sizes), ..., sum(sizes) if every sign is random.
    chances = np.ones(1)
    # Each group adds `size` or `-size` to the sum, each with probability 1/2.
    for size in sizes[sizes > 0]:
        chances = (np.pad(chances, (0, 2 * size)) + np.pad(chances, (2 * size, 0))) / 2
    sums = np.arange(len(chances)) - sizes.sum()
    # Rounding errors may bring the sum of the probabilities slightly above 1.
    return min(1.0, float(chances[np.abs(sums) >= abs(differences.sum())].sum()))


def holm(pairs: list[Pair]) -> list[Pair]:
    """Apply Holm's correction to the p-values of all pairs.

    Each metric is corrected separately. Holm, S. (1979).
    """
    if not pairs:
        return []
    corrected: list[dict[str, Difference]] = [{} for _ in pairs]
    for metric in pairs[0].differences:
        found = correct_holm([pair.differences[metric].p for pair in pairs])
        for pair, kept, p in zip(pairs, corrected, found, strict=True):
            kept[metric] = replace(pair.differences[metric], p_holm=p)
    # Pairs with different test reviews have no McNemar test, and Holm's correction omits them.
    tests = [pair.mcnemar for pair in pairs if pair.mcnemar]
    ps = iter(correct_holm([test.p for test in tests]) if tests else [])
    return [
        replace(
            pair,
            differences=kept,
            mcnemar=replace(pair.mcnemar, p_holm=next(ps)) if pair.mcnemar else None,
        )
        for pair, kept in zip(pairs, corrected, strict=True)
    ]


def correct_holm(ps: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction (Holm, S. (1979)), in the same order."""
    # statsmodels' multipletests computes the same, but collects garbage for 50 ms in each call.
    # The smallest of m p-values is multiplied by m, the next one by m - 1, and so on. The running
    # maximum keeps the corrected p-values in the order of the original ones.
    order = np.argsort(ps)
    factors = len(ps) - np.arange(len(ps))
    corrected = np.empty(len(ps))
    corrected[order] = np.maximum.accumulate(np.minimum(1.0, factors * np.asarray(ps)[order]))
    return [float(p) for p in corrected]
