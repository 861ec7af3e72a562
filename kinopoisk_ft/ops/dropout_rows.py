"""Dropout on a CPU: the kernels that threads run. A task is a row of `ROW` elements."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kinopoisk_ft.ops.draws import factors, row_key
from kinopoisk_ft.ops.kernel_cache import OPTIONS
from kinopoisk_ft.ops.lane_numbers import read, write
from kinopoisk_ft.ops.lanes import LANES
from kinopoisk_ft.ops.threads import bfloats, floats, take

ROW = 8192  # part of the definition: another number draws other masks


@njit(**OPTIONS)
def _drop(a: Any, x: Any, out: Any, room: Any) -> None:
    """Fill out with x times 0 or the scale; room: `LANES` elements for the last few."""
    size, key, threshold, scale = a[1], a[2], a[3], floats(a[4])[0]
    while True:
        row = take(a)
        start = row * ROW
        if start >= size:
            return
        own, wide = row_key(key, row), min(ROW, size - start)
        whole = wide - wide % LANES
        for j in range(0, whole, LANES):
            f = factors(own, j, threshold, scale)
            write(out, start + j, read(x, start + j) * f)
        if whole < wide:
            for j in range(wide - whole):
                room[j] = x[start + whole + j]
            write(room, 0, read(room, 0) * factors(own, whole, threshold, scale))
            for j in range(wide - whole):
                out[start + whole + j] = room[j]


def drop_float32(a: Any) -> None:
    """Drop elements of a float32 tensor."""
    room = np.zeros(LANES, np.float32)
    _drop(a, floats(a[5]), floats(a[6]), floats(room.ctypes.data))


def drop_bfloat16(a: Any) -> None:
    """Drop elements of a bfloat16 tensor."""
    room = np.zeros(LANES, np.uint16)
    _drop(a, bfloats(a[5]), bfloats(a[6]), bfloats(room.ctypes.data))
