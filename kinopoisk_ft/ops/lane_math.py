"""Exponentials for `Lanes`: polynomials, a few float32 units in the last place from exact."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kinopoisk_ft.ops.lane_exponent import scale, split
from kinopoisk_ft.ops.lanes import clamp, splat

_f = np.float32
LOG2_E = _f(1.4426950408889634)
LN_2 = _f(0.6931471805599453)
# 2**r = 1 + r (E0 + r (E1 + ...)) on |r| <= 1/2, weighted so that the error vanishes at r = 0: a
# decay close to one is raised to a high power by the scan.
_E0, _E1, _E2 = _f(0.69314706), _f(0.24022295), _f(0.055506997)
_E3, _E4 = _f(0.0096689984), _f(0.001326638)
# atanh(s) / s = 1 + s^2 (L0 + s^2 (L1 + ...)) on s <= 1/3
_L0, _L1, _L2 = _f(0.33333334), _f(0.19999817), _f(0.14297026)
_L3, _L4 = _f(0.10847408), _f(0.11618348)
_ONE, _TWO, _ZERO, _MANY = _f(1.0), _f(2.0), _f(0.0), _f(3.0e38)


@njit(forceinline=True)
def exp2(x: Any) -> Any:
    """2**x; 2**-126 or 0 for anything below -126, inf above 128."""
    r, power = split(x)
    p = r * splat(_E4) + splat(_E3)
    p = r * p + splat(_E2)
    p = r * p + splat(_E1)
    p = r * p + splat(_E0)
    return scale(r * p + splat(_ONE), power)


@njit(forceinline=True)
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return splat(_ONE) / (splat(_ONE) + exp2(x * splat(-LOG2_E)))


@njit(forceinline=True)
def softplus(x: Any) -> Any:
    """log(1 + exp(x)), precise in relative terms where it is tiny."""
    positive = clamp(x, splat(_ZERO), splat(_MANY))
    size = positive + positive - x
    e = exp2(size * splat(-LOG2_E))
    s = e / (splat(_TWO) + e)
    q = s * s
    p = q * splat(_L4) + splat(_L3)
    p = q * p + splat(_L2)
    p = q * p + splat(_L1)
    p = q * p + splat(_L0)
    return positive + splat(_TWO) * s * (q * p + splat(_ONE))
