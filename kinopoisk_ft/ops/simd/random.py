"""Draw random numbers that depend only on a key, a row and a column, not on the thread.

A draw is the 32-bit hash `triple32` (Wellons, https://nullprogram.com/blog/2018/07/31/) of the
column plus the lower half of the row's 64-bit key. The upper half is added between the rounds of
the hash, so that two rows whose lower halves are close get different draws. The key of a row is
SplitMix64 (Steele, Lea & Flood, 2014) of the call's key and the row number. Each element uses a
whole draw. A half or a quarter of a draw would round the dropout probability to a multiple of
2**-16 or 2**-8, and would save little time, because memory bandwidth limits the kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from kinopoisk_ft.ops.simd.register import FLOAT_VECTOR, INT_VECTOR, LANES, vector_type

# Constants of SplitMix64.
_WEYL = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


@njit(forceinline=True)
def derive_row_key(key: Any, row: Any) -> Any:
    """Derive the uint64 key of a row from the call's key and the row number, both int64."""
    # Advance SplitMix64 by row + 1 steps from the state `key`, then apply its output function.
    z = np.uint64(key) + np.uint64(row + 1) * _WEYL
    z = (z ^ (z >> _30)) * _MIX[0]
    z = (z ^ (z >> _27)) * _MIX[1]
    return z ^ (z >> _31)


@intrinsic
def draw_factors(typing_context: Any, key: Any, column: Any, threshold: Any, scale: Any) -> Any:
    """Draw a vector of dropout factors for `LANES` columns: `scale` to keep an element, else 0.

    Args:
        key: uint64 key of the row.
        column: number of the first column, below 2**32.
        threshold: probability of keeping an element, times 2**32; lower draws keep the element.
        scale: float32 factor of a kept element.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)

        def broadcast(value: Any) -> Any:
            single = builder.insert_element(ir.Constant(INT_VECTOR, ir.Undefined), value, word(0))
            return builder.shuffle_vector(single, single, ir.Constant(INT_VECTOR, [0] * LANES))

        def xor_shift(x: Any, bits: int) -> Any:
            return builder.xor(x, builder.lshr(x, INT_VECTOR([bits] * LANES)))

        # Compute `triple32`: three rounds of a shift with xor and a multiplication, then a shift.
        key, column, threshold, scale = args
        low = builder.trunc(key, word)
        high = builder.trunc(builder.lshr(key, ir.IntType(64)(32)), word)
        start = builder.add(builder.trunc(column, word), low)
        x = builder.add(broadcast(start), INT_VECTOR(list(range(LANES))))
        x = builder.mul(xor_shift(x, 17), INT_VECTOR([0xED5AD4BB] * LANES))
        x = builder.add(xor_shift(x, 11), broadcast(high))
        x = builder.mul(x, INT_VECTOR([0xAC4C1B51] * LANES))
        x = builder.mul(xor_shift(x, 15), INT_VECTOR([0x31848BAB] * LANES))
        limit = broadcast(builder.trunc(threshold, word))
        is_kept = builder.icmp_unsigned("<", xor_shift(x, 14), limit)
        # Select on the bits of the float32 scale, because `broadcast` handles 32-bit integers.
        bits = broadcast(builder.bitcast(scale, word))
        factors = builder.select(is_kept, bits, INT_VECTOR([0] * LANES))
        return builder.bitcast(factors, FLOAT_VECTOR)

    return vector_type(types.uint64, types.int64, types.int64, types.float32), codegen
