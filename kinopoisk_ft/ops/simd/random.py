"""Draw random numbers that depend only on a key, a row and a column.

Each operator call has one key. SplitMix64 (Steele, Lea & Flood, 2014) combines this key and the row
number into a row key of 64 bits. The hash `triple32` (Wellons,
https://nullprogram.com/blog/2018/07/31/) combines the row key and the column number into a random
number of 32 bits. The lower half of the row key is added to the column number. The upper half is
added between two rounds of the hash, so that rows with similar lower halves get different numbers.

Each element uses a whole random number. If two elements shared one, each would get 16 bits, and the
dropout probability would be rounded to a multiple of 2**-16. Sharing would save little time anyway,
because memory bandwidth limits the kernels.
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
    """Compute the uint64 row key from the int64 key of an operator call and the row number."""
    # Advance SplitMix64 by row + 1 steps from the state `key`, then apply its output function.
    z = np.uint64(key) + np.uint64(row + 1) * _WEYL
    z = (z ^ (z >> _30)) * _MIX[0]
    z = (z ^ (z >> _27)) * _MIX[1]
    return z ^ (z >> _31)


@intrinsic
def draw_factors(typing_context: Any, key: Any, column: Any, threshold: Any, scale: Any) -> Any:
    """Draw a dropout factor for each of `LANES` columns: `scale` or 0.

    Args:
        key: uint64 key of the row.
        column: first column, from 0 to 2**32 - 1.
        threshold: probability of keeping an element, times 2**32.
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
