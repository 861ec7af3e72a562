"""Random numbers that are a function of where they are used: key, row and column.

A draw is the 32-bit hash `triple32` (Wellons, https://nullprogram.com/blog/2018/07/31/) of the
column, offset by one half of the row's key and with the other half added between its rounds: two
rows whose offsets overlap still differ. A row's key is SplitMix64 (Steele, Lea & Flood, 2014) of
the call's key and the row's number. One draw decides one element: halves or quarters of a draw
would round the rate of dropout to 2**-16 or 2**-8, and save little where memory is the limit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kinopoisk_ft.ops.simd.register import FLOATS, INTS, LANES, lanes_type

_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


@njit(forceinline=True)
def row_key(key: Any, row: Any) -> Any:
    """Return the 64-bit key of a row; key and row are int64."""
    z = np.uint64(key) + np.uint64(row + 1) * _WEYL
    z = (z ^ (z >> _30)) * _MIX[0]
    z = (z ^ (z >> _27)) * _MIX[1]
    return z ^ (z >> _31)


@intrinsic
def factors(typing_context: Any, key: Any, column: Any, threshold: Any, scale: Any) -> Any:
    """Return `scale` in each of `LANES` columns whose draw is below the threshold, else 0.

    key: of the row, uint64. column: the first, below 2**32. threshold: keep rate times 2**32.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)

        def every(value: Any) -> Any:
            single = builder.insert_element(ir.Constant(INTS, ir.Undefined), value, word(0))
            return builder.shuffle_vector(single, single, ir.Constant(INTS, [0] * LANES))

        def fold(x: Any, bits: int) -> Any:
            return builder.xor(x, builder.lshr(x, INTS([bits] * LANES)))

        key, column, threshold, scale = args
        low = builder.trunc(key, word)
        high = builder.trunc(builder.lshr(key, ir.IntType(64)(32)), word)
        start = builder.add(builder.trunc(column, word), low)
        x = builder.add(every(start), INTS(list(range(LANES))))
        x = builder.mul(fold(x, 17), INTS([0xED5AD4BB] * LANES))
        x = builder.add(fold(x, 11), every(high))
        x = builder.mul(x, INTS([0xAC4C1B51] * LANES))
        x = builder.mul(fold(x, 15), INTS([0x31848BAB] * LANES))
        kept = builder.icmp_unsigned("<", fold(x, 14), every(builder.trunc(threshold, word)))
        bits = every(builder.bitcast(scale, word))
        return builder.bitcast(builder.select(kept, bits, INTS([0] * LANES)), FLOATS)

    return lanes_type(types.uint64, types.int64, types.int64, types.float32), codegen
