"""Score slices of the test set, such as long or truncated reviews."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from kinopoisk_ft.statistics.bootstrap import LEVEL, Interval, percentiles, resample
from kinopoisk_ft.statistics.metrics import shown_in
from kinopoisk_ft.statistics.predictions import Predictions

QUARTERS = 4
# Slices need fewer resamples than the main results, because only two digits are of interest.
RESAMPLES = 2_000
SLICED_BY = ("characters", "truncated", "grade10", "film_in_train")
TRUNCATED = ("0", "0-50%", "50-100%")
SEEN = ("yes", "no")
# Value of `grade10` for reviews without a grade.
NO_GRADE = "0"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The scores of one approach on a slice of the test set.

    Proportions have Wilson intervals (Wilson, E. B., 1927). If reviews are grouped, these intervals
    use the effective sample size (Korn, E. L. and Graubard, B. I., 1998). Other metrics have
    percentile bootstrap intervals. No interval includes the variance between seeds.

    Args:
        by: the column of the predictions that defines the slice.
        value: the value in this column, or the range of values.
        n: number of reviews.
        scores: scores by metric.
    """

    by: str
    value: str
    n: int
    scores: dict[str, Interval]

    @property
    def place(self) -> tuple[int, float]:
        """The sort key of a slice: the position of its column, then the position of its value."""
        known = {"truncated": TRUNCATED, "film_in_train": SEEN}.get(self.by)
        at = known.index(self.value) if known else float(self.value.partition("-")[0])
        return SLICED_BY.index(self.by), at


def slices(runs: list[Predictions]) -> list[Slice]:
    """Compute scores on subsets of the test reviews, for example short and long reviews.

    All runs must have the same test reviews. Scores are means over the runs.
    """
    first = runs[0]
    predicted = np.stack([run.predicted for run in runs])
    found = []
    for by in SLICED_BY:
        if by in first.facts:
            values = first.facts[by]
            for value, here in _parts(by, values[values.notna()], len(values)):
                found.append(_slice(by, value, first, predicted[:, here], here))
    return found


def _parts(by: str, known: pd.Series, n: int) -> list[tuple[str, np.ndarray]]:
    if known.empty:
        return []
    if by == "characters":
        # If many reviews have the same length, some quartiles coincide, and there are fewer slices.
        codes = pd.qcut(known, QUARTERS, labels=False, duplicates="drop")
        names = known.groupby(codes).agg(lambda part: f"{part.min()}-{part.max()}")
        kinds = codes.map(names)
        order = list(dict.fromkeys(names))
    elif by == "truncated":
        # The intervals are (-inf, 0], (0, 0.5] and (0.5, inf). 0 means that nothing was removed.
        kinds = pd.cut(known, [-np.inf, 0, 0.5, np.inf], labels=list(TRUNCATED)).astype(str)
        order = list(TRUNCATED)
    elif by == "grade10":
        kinds = known.astype(int).astype(str)
        order = sorted(kinds.unique(), key=int)
    else:
        kinds = known.astype(bool).map({True: "yes", False: "no"})
        order = list(SEEN)
    masks = []
    for name in order:
        mask = np.zeros(n, dtype=bool)
        # The index of `facts` is 0, 1, and so on, so its labels are positions.
        mask[kinds.index[kinds == name]] = True
        if mask.any():
            masks.append((name, mask))
    return masks


def _slice(
    by: str, value: str, first: Predictions, predicted: np.ndarray, here: np.ndarray
) -> Slice:
    n, classes = int(here.sum()), len(first.class_names)
    groups = None if first.groups is None else first.groups[here]
    scored = resample(first.labels[here], predicted, classes, groups=groups, resamples=RESAMPLES)
    found = {}
    for metric in shown_in("slices"):
        mean = float(scored[metric.name].observed.mean())
        resampled = scored[metric.name].resampled
        if metric.proportion:
            size = n if groups is None else _effective_size(mean, resampled, groups)
            # The formula of Wilson's interval also accepts numbers of reviews that are not whole.
            ends = proportion_confint(mean * size, size, alpha=1 - LEVEL, method="wilson")
            found[metric.name] = Interval(mean, *map(float, ends))
        else:
            found[metric.name] = percentiles(mean, resampled.mean(axis=1), metric.lowest)
    return Slice(by=by, value=value, n=n, scores=found)


def _effective_size(accuracy: float, resampled: np.ndarray, groups: np.ndarray) -> float:
    """Return the effective sample size of grouped reviews.

    With this number of independent reviews, the accuracy would have the same variance. `resampled`
    is (resamples, runs): the accuracy on resamples of whole groups. `groups` is (N,).
    """
    variance, count = float(resampled.mean(axis=1).var()), len(np.unique(groups))
    # The variance is 0 if all predictions are right or all are wrong, and the variance between
    # groups is unknown if there is only one. Count groups instead.
    if not variance or count == 1:
        return count
    # The variance is only an estimate. Without `min`, the size could exceed the number of reviews.
    return min(float(len(groups)), accuracy * (1 - accuracy) / variance)
