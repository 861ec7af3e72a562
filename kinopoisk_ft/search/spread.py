"""Points that are spread over a space: random ones may leave most of a range out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def spread(found: dict[str, BaseDistribution], count: int, seed: int) -> list[dict[str, Any]]:
    """Return points of a Latin hypercube (McKay, Beckman and Conover, 1979).

    Each range is cut into `count` equal parts, and each part has one point.
    """
    rng = np.random.default_rng(seed)
    shares = {key: (rng.permutation(count) + rng.random(count)) / count for key in found}
    return [{key: _at(dist, float(shares[key][i])) for key, dist in found.items()}
            for i in range(count)]  # fmt: skip


def _at(dist: Any, share: float) -> Any:
    """Return the value that lies at a share in [0, 1) of a distribution."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(dist, CategoricalDistribution):
        return dist.choices[int(share * len(dist.choices))]
    whole = isinstance(dist, IntDistribution)
    if dist.log:
        value = dist.low * (dist.high / dist.low) ** share
        return round(value) if whole else value
    if dist.step is None:
        return dist.low + (dist.high - dist.low) * share
    value = dist.low + dist.step * int(share * (round((dist.high - dist.low) / dist.step) + 1))
    return value if whole else min(value, dist.high)
