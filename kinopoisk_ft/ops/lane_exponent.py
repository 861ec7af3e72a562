"""Splitting and scaling by powers of two for `Lanes`: one instruction each where AVX-512 has it."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils
from numba.extending import intrinsic

from kinopoisk_ft.ops.lanes import FLOATS, INTS, LANES, clamp, lanes_type, splat

_WORD = ir.IntType(32)
_NEAREST, _AS_SET = 8, 4  # of the instructions: round to nearest without a trap; the current mode
# Adding and subtracting 1.5 * 2**23 rounds a float32 to an integer, left in the low mantissa bits.
_ROUND = np.float32(12582912.0)
_LOWEST, _HIGHEST = np.float32(-126.0), np.float32(128.0)


def _call(builder: Any, name: str, *args: Any) -> Any:
    """Call one of AVX-512's masked instructions on all lanes."""
    *given, mode = args
    given += [FLOATS(ir.Undefined), ir.IntType(16)(-1), _WORD(mode)]
    kind = ir.FunctionType(FLOATS, [x.type for x in given])
    name = f"llvm.x86.avx512.mask.{name}.ps.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)


@intrinsic
def _off_integer(typing_context: Any, x: Any) -> Any:
    """Return x less the nearest integer; 0 for an infinity."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "reduce", *args, _WORD(_NEAREST), _AS_SET)

    return lanes_type(lanes_type), codegen


@intrinsic
def _scale(typing_context: Any, value: Any, power: Any) -> Any:
    """Multiply by 2**power, power being an integer."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "scalef", *args, _AS_SET)

    return lanes_type(lanes_type, lanes_type), codegen


@intrinsic
def _shift_exponent(typing_context: Any, value: Any, steps: Any) -> Any:
    """Multiply by 2**k, k being the integer in the low mantissa bits of `steps`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, steps = (builder.bitcast(arg, INTS) for arg in args)
        shift = ir.Constant(INTS, [23] * LANES)
        return builder.bitcast(builder.add(bits, builder.shl(steps, shift)), FLOATS)

    return lanes_type(lanes_type, lanes_type), codegen


@njit(forceinline=True)
def _split_native(x: Any) -> Any:
    r = _off_integer(x)
    return r, x - r


@njit(forceinline=True)
def _split_plain(x: Any) -> Any:
    x = clamp(x, splat(_LOWEST), splat(_HIGHEST))
    steps = x + splat(_ROUND)
    return x - (steps - splat(_ROUND)), steps


_NATIVE = LANES == 16 and llvm.get_host_cpu_features().get("avx512dq", False)
# split(x): r within 1/2 of zero, and what `scale(value, ...)` needs to multiply by 2**(x - r).
# Without AVX-512, x is taken to lie within -126 .. 128.
split = _split_native if _NATIVE else _split_plain
scale = _scale if _NATIVE else _shift_exponent
