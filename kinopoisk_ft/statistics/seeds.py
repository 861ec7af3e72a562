"""The chance of training beside that of the test reviews: a bootstrap of two levels.

The upper level cannot be resampled as it stands: the mean of three seeds drawn out of three takes
ten values, and their 95% interval misses the truth one time in four. It is drawn from Student's t
with the seeds' own deviation instead (a parametric bootstrap); the lower level, reviews, is
resampled. Two approaches' seeds have the freedom of Welch, B. L. (1947). Davison, A. C. and
Hinkley, D. V. (1997). Bootstrap Methods and their Application, sections 2.2 and 3.8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STREAM = (1, 0)  # of the generator: no stream of reviews, so the two levels are independent


@dataclass(frozen=True)
class Seeds:
    """One score of the seeds of an approach: observed (S,), resampled (resamples, S)."""

    observed: np.ndarray
    resampled: np.ndarray

    @property
    def own_variance(self) -> float:
        """Return the variance, over resamples, of what a seed does not share with the others."""
        n = len(self.observed)
        if n == 1:
            return 0.0
        own = self.resampled - self.resampled.mean(axis=1, keepdims=True)
        return float(own.var(axis=0).mean() * n / (n - 1))

    def __sub__(self, other: Seeds) -> Seeds:
        """Return the differences, seed by seed."""
        return Seeds(self.observed - other.observed, self.resampled - other.resampled)


def total(sides: Sequence[tuple[float, Seeds]]) -> tuple[float, np.ndarray]:
    """Return the sum of sign · mean over seeds, and its resamples over both levels (resamples,).

    What a seed makes of these very reviews is in the deviation between seeds already, so the
    reviews' part is narrowed to what the seeds share. With one seed on a side, the chance of
    training is not measured there and the reviews' part stays whole.
    """
    observed = float(sum(sign * seeds.observed.mean() for sign, seeds in sides))
    reviews = sum(sign * seeds.resampled.mean(axis=1) for sign, seeds in sides) - observed
    own = sum(seeds.own_variance / len(seeds.observed) for _, seeds in sides)
    variance = float(np.var(reviews))
    shared = math.sqrt(max(0.0, 1 - own / variance)) if variance else 0.0
    return observed, observed + shared * reviews + _training([s for _, s in sides], len(reviews))


def _training(sides: list[Seeds], resamples: int) -> np.ndarray:
    """Return draws (resamples,) of the error that the choice of seeds leaves in a sum of means."""
    counted = [seeds.observed for seeds in sides if len(seeds.observed) > 1]
    parts = [float(values.var(ddof=1)) / len(values) for values in counted]
    if not sum(parts):
        return np.zeros(resamples)
    shares = [
        (part / sum(parts)) ** 2 / (len(v) - 1) for part, v in zip(parts, counted, strict=True)
    ]
    freedom = 1 / sum(shares)
    rng = np.random.default_rng(STREAM)
    return math.sqrt(sum(parts)) * rng.standard_t(freedom, resamples)
