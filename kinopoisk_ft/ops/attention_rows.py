"""Softmax and dropout of attention on a CPU, forward and backward: the kernels that threads run.

A task is `ROWS` rows of scores, (matrices, queries, width) and made by a matrix product; a row's
masks are drawn from its number among all rows of the batch. Logarithms are to base 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kinopoisk_ft.ops.draws import factors, row_key
from kinopoisk_ft.ops.kernel_cache import OPTIONS
from kinopoisk_ft.ops.lane_math import exp2
from kinopoisk_ft.ops.lane_memory import scratch
from kinopoisk_ft.ops.lane_numbers import read, write
from kinopoisk_ft.ops.lanes import LANES, larger, load, splat, store, total
from kinopoisk_ft.ops.threads import bfloats, floats, take

ROWS = 16
_f = np.float32
_LOWEST = _f(-np.inf)
_TINY = _f(2**-126)


@njit(forceinline=True)
def _bias_row(a: Any, row: Any) -> Any:
    """Return where the bias of a row, counted from the first of the batch, starts."""
    queries, heads = a[2], a[3]
    matrix = row // queries
    return matrix // heads * a[9] + matrix % heads * a[10] + row % queries * a[11]


@njit(forceinline=True)
def _power(x: Any) -> Any:
    """2**x, and 0 from 2**-126 down: what is masked must not slow products down as denormals."""
    return larger(splat(_f(0)), exp2(x) - splat(_TINY))


@njit(**OPTIONS)
def _highest(
    scores: Any, at: int, bias: Any, bias_at: int, width: int, rate: Any, room: Any
) -> Any:
    """Return the largest logit of a row."""
    top = splat(_LOWEST)
    for j in range(0, width, LANES):
        top = larger(read(scores, at + j) * splat(rate) + load(bias, bias_at + j), top)
    store(room, 0, top)
    best = room[0]
    for j in range(1, LANES):
        best = max(best, room[j])
    return best


@njit(**OPTIONS)
def _weigh(a: Any, scores: Any, room: Any) -> None:
    """Put exp2(logit - highest) times 0 or the scale over the scores; keep highest and sum."""
    rows, queries, first, width, key, threshold = a[1], a[2], a[4], a[5], a[6], a[7]
    bias, rate, scale = floats(a[8]), floats(a[12])[0], floats(a[12])[1]
    highest, sums = floats(a[14]), floats(a[15])
    while True:
        start = take(a) * ROWS
        if start >= rows:
            return
        for i in range(start, min(rows, start + ROWS)):
            row, at = first * queries + i, i * width
            own, bias_at = row_key(key, row), _bias_row(a, row)
            top = _highest(scores, at, bias, bias_at, width, rate, room)
            if top == _LOWEST:  # nothing to attend to: the output and the gradients are zero
                added = splat(_f(0))
                for j in range(0, width, LANES):
                    added = added + read(scores, at + j) + load(bias, bias_at + j)
                    write(scores, at + j, splat(_f(0)))
                highest[row], sums[row] = -_LOWEST, _f(1)
                if np.isnan(total(added)):  # or nothing that is a number, which must show
                    highest[row], sums[row] = _f(np.nan), _f(np.nan)
                continue
            added = splat(_f(0))
            for j in range(0, width, LANES):
                logit = read(scores, at + j) * splat(rate) + load(bias, bias_at + j)
                e = _power(logit - splat(top))
                added = added + e
                write(scores, at + j, e * factors(own, j, threshold, scale))
            highest[row], sums[row] = top, total(added)


@njit(**OPTIONS)
def _weigh_back(a: Any, scores: Any, grads: Any) -> None:
    """Put the dropped probabilities over the scores, and the scores' gradient over theirs."""
    rows, queries, first, width, key, threshold = a[1], a[2], a[4], a[5], a[6], a[7]
    bias, rate, scale, slope = floats(a[8]), floats(a[12])[0], floats(a[12])[1], floats(a[12])[2]
    norms, deltas = floats(a[14]), floats(a[15])
    while True:
        start = take(a) * ROWS
        if start >= rows:
            return
        for i in range(start, min(rows, start + ROWS)):
            row, at = first * queries + i, i * width
            own, bias_at = row_key(key, row), _bias_row(a, row)
            norm, delta = splat(norms[row]), splat(deltas[row])
            for j in range(0, width, LANES):
                logit = read(scores, at + j) * splat(rate) + load(bias, bias_at + j)
                p = _power(logit - norm)
                f = factors(own, j, threshold, scale)
                write(scores, at + j, p * f)
                write(grads, at + j, p * splat(slope) * (read(grads, at + j) * f - delta))


def weigh_float32(a: Any) -> None:
    """Forward, on float32 scores."""
    _weigh(a, floats(a[13]), scratch(LANES))


def weigh_bfloat16(a: Any) -> None:
    """Forward, on bfloat16 scores."""
    _weigh(a, bfloats(a[13]), scratch(LANES))


def weigh_back_float32(a: Any) -> None:
    """Backward, on float32 scores."""
    _weigh_back(a, floats(a[13]), floats(a[16]))


def weigh_back_bfloat16(a: Any) -> None:
    """Backward, on bfloat16 scores."""
    _weigh_back(a, bfloats(a[13]), bfloats(a[16]))
