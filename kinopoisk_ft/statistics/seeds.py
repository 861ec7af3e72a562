"""Combine the variance between seeds with the variance between test reviews.

Only the reviews are resampled, because there are too few seeds. Resampling three seeds gives only
ten different means, and a 95% interval that misses the true mean one time in four. Instead, the
error due to seeds is drawn from Student's t distribution (a parametric bootstrap). For two
approaches, the degrees of freedom follow Welch, B. L. (1947).

Davison, A. C. and Hinkley, D. V. (1997). Bootstrap Methods and their Application, sections 2.2
and 3.8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# `bootstrap.resample` seeds its draws with (0, n), so seed errors are independent of these draws.
STREAM = 1


@dataclass(frozen=True)
class RunScores:
    """The scores of several runs in one metric.

    Args:
        observed: (runs,) scores on the test reviews.
        resampled: (resamples, runs) scores on bootstrap resamples. Each resample contains the same
            reviews for all runs, so that differences between runs are paired.
    """

    observed: np.ndarray
    resampled: np.ndarray

    @property
    def own_variance(self) -> float:
        """Return the part of the variance between resamples that the runs do not share.

        A resample of the reviews changes the scores of all runs by a common amount, and the score
        of each run by an additional amount. The result is the variance of the additional amounts.
        With one run, it cannot be estimated, and the result is 0.
        """
        n = len(self.observed)
        if n == 1:
            return 0.0
        # The common amount of a resample is its mean over the runs. Because this mean is estimated
        # from n runs, the variance is multiplied by n / (n - 1), as with ddof=1.
        own = self.resampled - self.resampled.mean(axis=1, keepdims=True)
        return float(own.var(axis=0).mean() * n / (n - 1))

    def select(self, runs: slice | list[int]) -> RunScores:
        """Return the scores of some of the runs."""
        return RunScores(self.observed[runs], self.resampled[:, runs])


class Total(NamedTuple):
    """A mean over seeds, or a difference of two such means.

    Args:
        mean: value on the test reviews.
        resampled: (resamples,) values for simulated choices of test reviews and seeds.
        review_variance: variance due to the choice of test reviews.
        seed_variance: variance due to the choice of seeds; 0 if no approach has several seeds.
        own_variance: the part of `seed_variance` that becomes smaller with more test reviews; see
            `RunScores.own_variance`.
        spreads: for each mean over seeds, the variance between the seeds and the number of seeds.
            With one seed, the variance is unknown, and 0 here.
    """

    mean: float
    resampled: np.ndarray
    review_variance: float
    seed_variance: float
    own_variance: float
    spreads: tuple[tuple[float, int], ...]


def subtract(a: RunScores, b: RunScores, *, same_seeds: bool, stream: int = 0) -> Total:
    """Return mean(a) - mean(b) with resamples.

    Args:
        same_seeds: whether a and b have the same seeds in the same order, so that they are paired.
        stream: see `total`.
    """
    if same_seeds:
        # Effects that are common to both runs of a seed cancel out in their difference.
        paired = RunScores(a.observed - b.observed, a.resampled - b.resampled)
        return total([(1.0, paired)], stream)
    return total([(1.0, a), (-1.0, b)], stream)


def total(sides: Sequence[tuple[float, RunScores]], stream: int = 0) -> Total:
    """Return a mean over seeds, or the difference of two such means, with resamples.

    The resamples vary with the choice of test reviews and with the choice of seeds. An approach
    with one seed adds no variance between seeds, because one seed is too few to estimate it.

    Args:
        sides: [(1, a)] for the mean of a, or [(1, a), (-1, b)] for the mean of a minus the mean
            of b.
        stream: number of the random stream for the error due to seeds. If several results are
            combined, each must use another stream, so that their errors are independent.
    """
    observed = float(sum(sign * seeds.observed.mean() for sign, seeds in sides))
    # (resamples,): the deviations from the observed value due to the choice of reviews.
    reviews = sum(sign * seeds.resampled.mean(axis=1) for sign, seeds in sides) - observed
    # The variance between seeds already includes the part of the variance over reviews that the
    # seeds do not share. Subtract this part here, so that it is not counted twice.
    own = sum(seeds.own_variance / len(seeds.observed) for _, seeds in sides)
    variance = float(np.var(reviews))
    shared = math.sqrt(max(0.0, 1 - own / variance)) if variance else 0.0
    spreads = tuple(
        (float(values.var(ddof=1)) if len(values) > 1 else 0.0, len(values))
        for values in (seeds.observed for _, seeds in sides)
    )
    resampled = observed + shared * reviews + draw_seed_errors(spreads, len(reviews), stream)
    seed_variance = sum(spread / count for spread, count in spreads)
    return Total(
        mean=observed,
        resampled=resampled,
        review_variance=shared**2 * variance,
        seed_variance=seed_variance,
        # Estimates of a part and of the whole may contradict each other.
        own_variance=min(own, seed_variance),
        spreads=spreads,
    )


def draw_seed_errors(
    spreads: Sequence[tuple[float, int]], resamples: int, stream: int = 0
) -> np.ndarray:
    """Draw an error due to seeds for each resample, from Student's t distribution.

    `spreads` and `stream` are those of `Total` and `total`.
    """
    # The squared standard error of each mean over seeds, and its degrees of freedom.
    parts = [(spread / count, count - 1) for spread, count in spreads if count > 1]
    variance = sum(part for part, _ in parts)
    if not variance:
        return np.zeros(resamples)
    # Welch-Satterthwaite degrees of freedom.
    freedom = 1 / sum((part / variance) ** 2 / n for part, n in parts)
    rng = np.random.default_rng((STREAM, stream))
    # Percentile intervals of these draws are Student's intervals, or Welch's for two approaches.
    return math.sqrt(variance) * rng.standard_t(freedom, resamples)
