"""Compute confidence intervals and p-values by bootstrapping the test reviews.

Efron, B. and Tibshirani, R. (1993). An Introduction to the Bootstrap, chapters 12 to 16.

If reviews are grouped, for example by film, whole groups are drawn (a cluster bootstrap). With few
groups, or with groups of very different sizes, the percentile intervals would be too narrow.
Therefore, they are widened (see `widening`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from kinopoisk_ft.statistics.metrics import count_confusion, scores
from kinopoisk_ft.statistics.predictions import Predictions
from kinopoisk_ft.statistics.seeds import RunScores, total

RESAMPLES = 10_000
LEVEL = 0.95
# Significance level of all tests.
ALPHA = 0.05
# Resamples are drawn in blocks, whose arrays have at most this many numbers (32 MB) each.
CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% confidence interval."""

    mean: float
    low: float
    high: float


def resample(
    labels: np.ndarray,
    predicted: np.ndarray,
    classes: int,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, RunScores]:
    """Score several runs on the test reviews, and on bootstrap resamples of these reviews.

    Returns the scores by metric.

    Args:
        labels: (N,) true classes.
        predicted: (runs, N) predicted classes.
        groups: (N,) group of each review, for example its film. If given, whole groups are drawn
            (Davison and Hinkley, 1997, section 3.8), and the distances of the resampled scores
            from the observed ones are multiplied by `widening`. With a single group, reviews are
            drawn, so the result holds only for other reviews of this group.
    """
    if groups is not None and len(np.unique(groups)) == 1:
        groups = None
    runs = len(predicted)
    # (runs, N): the index of each prediction in the flattened confusion matrices of all runs.
    cells = labels * classes + predicted + classes**2 * np.arange(runs)[:, None]
    if groups is None:
        # Reviews with the same label and the same predictions are interchangeable. Drawing only
        # the number of each kind is faster, and has the same distribution.
        kinds, counts = np.unique(cells, axis=1, return_counts=True)
        # (kinds, runs * classes**2): the confusion matrices of one review of each kind.
        into = np.zeros((len(counts), runs * classes**2))
        np.put_along_axis(into, kinds.T, 1.0, axis=1)
    else:
        numbers, places = np.unique(groups, return_inverse=True)
        # (groups, runs * classes**2): the confusion matrices of each group, for all runs.
        into = np.zeros((len(numbers), runs * classes**2))
        np.add.at(into, (places, cells), 1.0)
        # Each group is drawn with the same probability, whatever its size.
        counts = np.ones(len(numbers), dtype=np.int64)
    n = int(counts.sum())
    # The 0 makes these draws independent of those with `seeds.STREAM`.
    rng = np.random.default_rng((0, seed))
    block = max(1, CHUNK // max(into.shape))
    blocks = []
    for start in range(0, resamples, block):
        # Counts of n draws with replacement have a multinomial distribution.
        drawn = rng.multinomial(n, counts / n, size=min(block, resamples - start))
        # (resamples, runs, true class, predicted class). float64 is exact for counts below 2**53.
        matrices = (drawn @ into).reshape(-1, runs, classes, classes)
        blocks.append(scores(matrices))
    resampled = {m: np.concatenate([b[m] for b in blocks]) for m in blocks[0]}
    observed = scores(count_confusion(labels, predicted, classes))
    if groups is not None:
        factor = widening(np.bincount(places))
        resampled = {m: observed[m] + factor * (v - observed[m]) for m, v in resampled.items()}
    return {m: RunScores(observed[m], resampled[m]) for m in observed}


def resample_approaches(
    approaches: Sequence[Sequence[Predictions]], seed: int = 0
) -> list[dict[str, RunScores]]:
    """Score the runs of several approaches on the same resamples of their test reviews.

    Args:
        approaches: the runs of each approach. All runs must have the same test reviews.

    Returns:
        For each approach, the scores by metric.
    """
    runs = [run for approach in approaches for run in approach]
    first, predicted = runs[0], np.stack([run.predicted for run in runs])
    classes = len(first.class_names)
    scored = resample(first.labels, predicted, classes, groups=first.groups, seed=seed)
    found, start = [], 0
    for approach in approaches:
        here = slice(start, start + len(approach))
        found.append({metric: values.select(here) for metric, values in scored.items()})
        start += len(approach)
    return found


def widening(sizes: np.ndarray) -> float:
    """Return the factor by which to widen an interval if groups are few or of unequal sizes.

    The factor is a quantile of Student's t distribution, divided by the same quantile of the normal
    distribution. The degrees of freedom are the effective number of groups,
    sum(n)^2 / sum(n^2), minus one (Kish, L. (1965); Carter, A. V. et al. (2017). Asymptotic
    Behavior of a t-Test Robust to Cluster Heterogeneity).

    Args:
        sizes: (groups,) number of reviews in each group.
    """
    effective = sizes.sum() ** 2 / (sizes**2).sum()
    end = (1 + LEVEL) / 2
    # If one group contains nearly all reviews, `effective` is close to 1. With close to 0 degrees
    # of freedom, the factor would be nearly infinite.
    return float(stats.t.ppf(end, max(1.0, effective - 1)) / stats.norm.ppf(end))


def percentiles(mean: float, resampled: np.ndarray, lowest: float = -1.0) -> Interval:
    """Return `mean` with the 95% percentile interval of the resamples.

    Args:
        lowest: the smallest possible value; the largest one is 1.
    """
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # The ends of a widened interval may be outside of the possible values.
    return Interval(mean, max(lowest, float(low)), min(1.0, float(high)))


def estimate_mean(scores: RunScores, lowest: float = 0.0) -> Interval:
    """Return the mean over seeds with its 95% interval.

    The interval includes the variance due to the choice of test reviews and of seeds.

    Args:
        lowest: the smallest possible score.
    """
    found = total([(1.0, scores)])
    return percentiles(found.mean, found.resampled, lowest)


def p_value(resampled: np.ndarray) -> float:
    """Return the two-sided p-value for the null hypothesis that a difference is 0.

    `resampled` is (resamples,): the difference on each resample; see `seeds.Total`.
    The p-value agrees with the percentile interval: it is below 5% if the 95% interval excludes 0.
    The smallest possible p-value is 2 / (resamples + 1).
    """
    below, above = np.sum(resampled <= 0), np.sum(resampled >= 0)
    # Because of the + 1, the p-value is never 0 (Phipson, B. and Smyth, G. K., 2010).
    return float(min(1.0, 2 * (1 + min(below, above)) / (len(resampled) + 1)))
