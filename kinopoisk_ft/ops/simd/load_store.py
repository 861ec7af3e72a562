"""Registers read from and written to float32 or bfloat16, told apart by the pointer's type.

A bfloat16 is the upper half of a float32 and travels as uint16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.register import FLOATS, INTS, LANES, lanes_type

DTYPES = (torch.float32, torch.bfloat16)
_HALVES = ir.VectorType(ir.IntType(16), LANES)


def _target(builder: Any, memory_type: Any, memory: Any, index: Any) -> Any:
    kind = FLOATS if memory_type.dtype == types.float32 else _HALVES
    return builder.bitcast(builder.gep(memory, [index]), kind.as_pointer())


@intrinsic
def read(typing_context: Any, memory: Any, index: Any) -> Any:
    """Read `LANES` numbers from `index` on (no bounds check)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        value = builder.load(_target(builder, kind, *args), align=kind.dtype.bitwidth // 8)
        if kind.dtype == types.float32:
            return value
        return builder.bitcast(builder.shl(builder.zext(value, INTS), INTS([16] * LANES)), FLOATS)

    return lanes_type(memory, types.intp), codegen


@intrinsic
def write(typing_context: Any, memory: Any, index: Any, value: Any) -> Any:
    """Write `LANES` numbers, rounded to the nearest, ties to even (no bounds check)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, value = signature.args[0], args[2]
        if kind.dtype != types.float32:
            bits = builder.bitcast(value, INTS)
            odd = builder.and_(builder.lshr(bits, INTS([16] * LANES)), INTS([1] * LANES))
            rounded = builder.add(bits, builder.add(odd, INTS([0x7FFF] * LANES)))
            # Rounding would carry a NaN's mantissa over into an infinity or a zero.
            number = builder.fcmp_ordered("ord", value, value)
            rounded = builder.select(number, rounded, INTS([0x7FC00000] * LANES))
            value = builder.trunc(builder.lshr(rounded, INTS([16] * LANES)), _HALVES)
        pointer = _target(builder, kind, *args[:2])
        builder.store(value, pointer, align=kind.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(memory, types.intp, lanes_type), codegen


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
