"""Compare approaches by the number of labels that they were trained with.

All points of all curves are scored on the same test reviews, and on the same resamples of these
reviews.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kinopoisk_ft.statistics.bootstrap import (
    LEVEL,
    Interval,
    estimate_mean,
    percentiles,
    resample_approaches,
)
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.statistics.predictions import Predictions
from kinopoisk_ft.statistics.seeds import RunScores, subtract


@dataclass(frozen=True, kw_only=True)
class Point:
    """One approach trained with one number of labels.

    Args:
        limit: the setting data.train_limit; points with the same limit are compared.
        labels: mean number of training reviews over the runs.
    """

    limit: str
    labels: float
    seeds: tuple[str, ...]
    scores: RunScores


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The points of one approach, fewest labels first."""

    name: str
    points: tuple[Point, ...]

    @property
    def intervals(self) -> list[Interval]:
        """Return the mean of the headline metric with its interval, for each point."""
        return [estimate_mean(point.scores) for point in self.points]


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """The number of labels above which approach a always scores higher than approach b.

    `low` and `high` are the ends of the 95% interval. 0 means that a scores higher with every
    number of labels. Infinity means that a does not score higher with the largest number of labels.

    Args:
        fewest, most: the smallest and the largest number of labels for which both have runs.
        above, below: the measured numbers of labels before the crossing, divided by whether a
            scores higher.
    """

    a: str
    b: str
    labels: float
    low: float
    high: float
    fewest: float
    most: float
    above: tuple[float, ...]
    below: tuple[float, ...]


def draw_curves(
    runs: Mapping[str, Sequence[tuple[str, float, tuple[str, ...], list[Predictions]]]],
) -> list[Curve]:
    """Create the curve of each approach, and score all runs on the same resamples of the test set.

    Args:
        runs: for each approach, its points as (limit, labels, seeds, predictions of each seed). All
            runs must have the same test reviews.
    """
    # `resample_approaches` returns the points in the order in which `runs` contains them.
    scored = iter(resample_approaches([found for points in runs.values() for *_, found in points]))
    curves = []
    for name, points in runs.items():
        found = [
            Point(limit=limit, labels=labels, seeds=seeds, scores=next(scored)[HEADLINE])
            for limit, labels, seeds, _ in points
        ]
        found.sort(key=lambda point: point.labels)
        curves.append(Curve(name=name, points=tuple(found)))
    return curves


def find_crossing(a: Curve, b: Curve) -> Crossing | None:
    """Return the number of labels above which a always scores higher than b.

    Only points with a `limit` that occurs in both curves are compared. If there are fewer than two
    such limits, the result is None.
    """
    limits = {point.limit: point for point in b.points}
    pairs = [(point, limits[point.limit]) for point in a.points if point.limit in limits]
    if len(pairs) < 2:
        return None
    differences = [
        # Each point has its own stream, so that the errors due to seeds are independent.
        subtract(one.scores, other.scores, same_seeds=one.seeds == other.seeds, stream=stream)
        for stream, (one, other) in enumerate(pairs)
    ]
    labels = np.array([one.labels for one, _ in pairs])
    # (resamples, points).
    resampled = np.stack([d.resampled for d in differences], axis=1)
    means = np.array([d.mean for d in differences])
    (at,) = _last_crossings(labels, means[None])
    # The last point at which a does not score higher is the last one before the crossing.
    before = int(np.flatnonzero(means <= 0).max(initial=-1)) + 1
    above = means[:before] > 0
    # This method does not interpolate, because values between a number and infinity mean nothing.
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(_last_crossings(labels, resampled), ends, method="inverted_cdf")
    return Crossing(
        a=a.name, b=b.name, labels=float(at), low=float(low), high=float(high),
        fewest=float(labels[0]), most=float(labels[-1]),
        above=tuple(labels[:before][above].tolist()), below=tuple(labels[:before][~above].tolist()),
    )  # fmt: skip


def find_crossings(curves: Sequence[Curve]) -> list[Crossing]:
    """Return a crossing for each pair of curves.

    In each crossing, a is the approach with the higher score for the largest number of labels.
    """
    found = []
    for one, other in itertools.combinations(curves, 2):
        crossing = find_crossing(one, other)
        if crossing is not None and np.isinf(crossing.labels):
            crossing = find_crossing(other, one)
        found += [] if crossing is None else [crossing]
    return found


def estimate_gain(curve: Curve, more: int) -> Interval | None:
    """Estimate how much the score would rise with `more` additional labels.

    The last two points are extrapolated linearly in the logarithm of the number of labels. If the
    curve flattens, the estimate is too high. If there are fewer than two points, or if the last two
    have the same number of labels, the result is None.
    """
    if len(curve.points) < 2:
        return None
    before, last = curve.points[-2:]
    if before.labels == last.labels:
        return None
    change = subtract(last.scores, before.scores, same_seeds=last.seeds == before.seeds)
    # log((last + more) / last) / log(last / before): the future growth relative to the last growth.
    factor = np.log1p(more / last.labels) / np.log(last.labels / before.labels)
    return percentiles(change.mean * factor, change.resampled * factor)


def _last_crossings(labels: np.ndarray, differences: np.ndarray) -> np.ndarray:
    """Return, for each row of `differences`, the number of labels above which all are positive.

    `differences` is (N, points); column i is for `labels[i]` labels. Between two points,
    differences are interpolated linearly in the logarithm of the number of labels. The result is 0
    for a row that is positive at all points, and infinity for a row that is not positive at the
    last point.
    """
    x, last = np.log(labels), len(labels) - 1
    below = differences <= 0
    # Index of the last point at which the difference is not positive; -1 if there is none.
    # In the reversed row, `argmax` returns the first True, which is the last one of the row.
    k = np.where(below.any(1), last - below[:, ::-1].argmax(1), -1)
    # For k < 0 and k = last, any valid index will do, because the last line replaces the result.
    inner = np.clip(k, 0, last - 1)
    rows = np.arange(len(differences))
    here, there = differences[rows, inner], differences[rows, inner + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Outside of [0, 1], there is no crossing between these two points.
        share = np.clip(np.nan_to_num(-here / (there - here)), 0, 1)
    at = np.exp(x[inner] + share * (x[inner + 1] - x[inner]))
    return np.where(k < 0, 0.0, np.where(k == last, np.inf, at))
