"""Room that the kernels work in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from kinopoisk_ft.ops.kernel_cache import OPTIONS

_LINE = 16  # floats in a cache line: a register that straddles two costs twice


@njit(**OPTIONS)
def scratch(size: int) -> Any:
    """Return room for `size` floats that starts at a cache line."""
    room = np.empty(size + _LINE, np.float32)
    skip = -(room.ctypes.data // room.itemsize) % _LINE
    return room[skip : skip + size]


@njit(**OPTIONS)
def clear(out: Any, row: int, length: int, width: int, real: int, part: int, parts: int) -> None:
    """Write zeros to steps real .. length of a row of out (batch, length, width).

    The tasks of a row's channels share them out by steps: whole steps are one stretch of memory.
    """
    pads, first = length - real, row * length + real
    start, end = first + pads * part // parts, first + pads * (part + 1) // parts
    for at in range(start * width, end * width):
        out[at] = 0
