"""Room that the kernels work in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kinopoisk_ft.ops.kernel_cache import OPTIONS
from kinopoisk_ft.ops.lanes import LANES, splat, store

_LINE = 16  # floats in a cache line: a register that straddles two costs twice


@njit(**OPTIONS)
def scratch(size: int) -> Any:
    """Return room for `size` floats that starts at a cache line."""
    room = np.empty(size + _LINE, np.float32)
    skip = -(room.ctypes.data // room.itemsize) % _LINE
    return room[skip : skip + size]


@njit(**OPTIONS)
def clear(out: Any, at: int, width: int, wide: int, first: int, last: int) -> None:
    """Write zeros to `wide` channels of the steps first .. last of a row that starts at `at`."""
    for t in range(first, last):
        for j in range(0, wide, LANES):
            store(out, at + t * width + j, splat(np.float32(0)))
