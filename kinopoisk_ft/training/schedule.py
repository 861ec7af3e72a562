"""Define learning-rate schedules, which return a factor in [0, 1] for each step."""

from __future__ import annotations

import math


def _warmup(step: int, warmup: int) -> float:
    # The first step of a warm-up has the factor 0, as in the schedules of transformers.
    return min(1.0, step / warmup) if warmup else 1.0


def linear(step: int, warmup: int, total: int) -> float:
    """Return a factor that rises linearly to 1 at step `warmup`, then falls to 0 at `total`."""
    if step < warmup:
        return _warmup(step, warmup)
    # The warm-up may be as long as the schedule.
    return max(0.0, (total - step) / max(1, total - warmup))


def cosine(step: int, warmup: int, total: int) -> float:
    """Return a factor that rises to 1, then falls along a cosine (Loshchilov & Hutter, 2017)."""
    if step < warmup:
        return _warmup(step, warmup)
    share = min(1.0, (step - warmup) / max(1, total - warmup))
    # Equation 5 of the paper with a single cycle and a minimum of 0.
    return 0.5 * (1.0 + math.cos(math.pi * share))


def constant(step: int, warmup: int, total: int) -> float:
    """Return a factor that rises linearly to 1 at step `warmup`, then stays at 1."""
    return _warmup(step, warmup)
