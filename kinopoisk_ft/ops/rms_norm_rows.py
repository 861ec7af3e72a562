"""Root mean square normalisation on a CPU, forward and backward: the kernels that threads run.

A task is `ROWS` rows of (rows, width), width in whole registers. The output and its gradient are
float32 or bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kinopoisk_ft.ops.kernel_cache import OPTIONS
from kinopoisk_ft.ops.lane_memory import scratch
from kinopoisk_ft.ops.lane_numbers import read, write
from kinopoisk_ft.ops.lanes import LANES, load, splat, store, total
from kinopoisk_ft.ops.threads import bfloats, floats, take

ROWS = 64
_f = np.float32


@njit(**OPTIONS)
def _normalise(a: Any, out: Any) -> None:
    """Fill out (rows, width) and scales (rows,), what each row is multiplied by."""
    rows, width, share, eps = a[1], a[2], floats(a[3])[0], floats(a[3])[1]
    x, weight, scales = floats(a[4]), floats(a[5]), floats(a[7])
    task = take(a)
    while task * ROWS < rows:
        for row in range(task * ROWS, min(rows, (task + 1) * ROWS)):
            at, squares = row * width, splat(_f(0))
            for j in range(0, width, LANES):
                value = load(x, at + j)
                squares = value * value + squares
            scale = _f(1) / np.sqrt(total(squares) * share + eps)
            scales[row] = scale
            for j in range(0, width, LANES):
                write(out, at + j, load(x, at + j) * splat(scale) * load(weight, j))
        task = take(a)


@njit(**OPTIONS)
def _normalise_back(a: Any, grad: Any) -> None:
    """Fill the gradient of x (rows, width) and, by task, that of weight (tasks, width)."""
    rows, width, x, weight = a[1], a[2], floats(a[4]), floats(a[5])
    scales, grad_x, parts = floats(a[7]), floats(a[8]), floats(a[9])
    share, own = floats(a[3])[0], scratch(width)
    task = take(a)
    while task * ROWS < rows:
        own[:] = _f(0)
        for row in range(task * ROWS, min(rows, (task + 1) * ROWS)):
            at, scale, products = row * width, scales[row], splat(_f(0))
            for j in range(0, width, LANES):
                g = read(grad, at + j)
                value = load(x, at + j) * splat(scale)
                products = g * load(weight, j) * value + products
                store(own, j, g * value + load(own, j))
            mean = total(products) * share
            for j in range(0, width, LANES):
                value = load(x, at + j) * splat(scale)
                slope = read(grad, at + j) * load(weight, j) - value * splat(mean)
                store(grad_x, at + j, slope * splat(scale))
        for j in range(0, width, LANES):
            store(parts, task * width + j, load(own, j))
        task = take(a)


def normalise_float32(a: Any) -> None:
    """Forward, to float32."""
    _normalise(a, floats(a[6]))


def normalise_bfloat16(a: Any) -> None:
    """Forward, to bfloat16."""
    _normalise(a, bfloats(a[6]))


def normalise_back_float32(a: Any) -> None:
    """Backward, from float32."""
    _normalise_back(a, floats(a[6]))


def normalise_back_bfloat16(a: Any) -> None:
    """Backward, from bfloat16."""
    _normalise_back(a, bfloats(a[6]))
