"""Whether a difference between two approaches exceeds what other seeds would change."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import t as student

from kinopoisk_ft.reporting.table import Spread

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """a - b with Welch's interval; the interval is None where the seeds cannot measure chance.

    Welch, B. L. (1947). It covers the chance of training (seeds), not of the test reviews.
    """

    mean: float
    interval: tuple[float, float] | None

    @property
    def measured(self) -> bool:
        """Return whether both sides had seeds that differ."""
        return self.interval is not None

    @property
    def beyond_noise(self) -> bool:
        """Return whether the interval leaves out zero."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def difference(a: Spread, b: Spread) -> Difference:
    """Return a - b; one seed on either side, or no spread on both, measures no chance."""
    mean = a.mean - b.mean
    if a.std is None or b.std is None or a.std == b.std == 0:
        return Difference(mean, None)
    parts = [(spread.std or 0.0) ** 2 / spread.n for spread in (a, b)]
    freedom = sum(parts) ** 2 / sum(
        part**2 / (spread.n - 1) for part, spread in zip(parts, (a, b), strict=True)
    )
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(sum(parts))
    return Difference(mean, (mean - half, mean + half))
