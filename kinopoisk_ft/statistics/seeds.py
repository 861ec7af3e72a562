"""Combine the chance of training with the chance of the test reviews in a two-level bootstrap.

Seeds cannot be resampled: the mean of three seeds drawn out of three takes ten values, and its 95%
interval misses the true mean one time in four. Their error is drawn from Student's t with the
deviation between seeds (a parametric bootstrap); the reviews are resampled. For two approaches the
degrees of freedom follow Welch, B. L. (1947). Davison, A. C. and Hinkley, D. V. (1997). Bootstrap
Methods and their Application, sections 2.2 and 3.8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A seed that no resampling of reviews uses, so that the two levels are independent.
STREAM = (1, 0)


@dataclass(frozen=True)
class Seeds:
    """One metric of the S seeds of an approach: observed (S,), resampled (resamples, S)."""

    observed: np.ndarray
    resampled: np.ndarray

    @property
    def own_variance(self) -> float:
        """Return the variance over resamples that a seed does not share with the other seeds."""
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

    The deviation between seeds already contains how each seed reacts to these reviews, so the
    variance of the reviews is reduced to the part that the seeds share. A side with one seed has no
    measured variance of training, and the variance of the reviews is kept in full.
    """
    observed = float(sum(sign * seeds.observed.mean() for sign, seeds in sides))
    reviews = sum(sign * seeds.resampled.mean(axis=1) for sign, seeds in sides) - observed
    own = sum(seeds.own_variance / len(seeds.observed) for _, seeds in sides)
    variance = float(np.var(reviews))
    shared = math.sqrt(max(0.0, 1 - own / variance)) if variance else 0.0
    return observed, observed + shared * reviews + _training([s for _, s in sides], len(reviews))


def _training(sides: list[Seeds], resamples: int) -> np.ndarray:
    """Return draws (resamples,) of the error of a sum of means due to the choice of seeds."""
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
