"""Exponentials for `Lanes`: polynomials, a few float32 units in the last place from exact."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils
from numba.extending import intrinsic

from kinopoisk_ft.ops.simd.register import FLOATS, INTS, LANES, clamp, lanes_type, splat

_f = np.float32
LOG2_E = _f(1.4426950408889634)
LN_2 = _f(0.6931471805599453)
# 2**r = 1 + r (E0 + r (E1 + ...)) on |r| <= 1/2, weighted so that the error vanishes at r = 0: a
# decay close to one is raised to a high power by the scan.
_E0, _E1, _E2 = _f(0.69314706), _f(0.24022295), _f(0.055506997)
_E3, _E4 = _f(0.0096689984), _f(0.001326638)
# atanh(s) / s = 1 + s^2 (L0 + s^2 (L1 + ...)) on s <= 1/3
_L0, _L1, _L2 = _f(0.33333334), _f(0.19999817), _f(0.14297026)
_L3, _L4 = _f(0.10847408), _f(0.11618348)
_ONE, _TWO, _ZERO, _MANY = _f(1.0), _f(2.0), _f(0.0), _f(3.0e38)


@njit(forceinline=True)
def exp2(x: Any) -> Any:
    """2**x; 2**-126 or 0 for anything below -126, inf above 128."""
    r, power = split(x)
    p = r * splat(_E4) + splat(_E3)
    p = r * p + splat(_E2)
    p = r * p + splat(_E1)
    p = r * p + splat(_E0)
    return scale(r * p + splat(_ONE), power)


@njit(forceinline=True)
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return splat(_ONE) / (splat(_ONE) + exp2(x * splat(-LOG2_E)))


@njit(forceinline=True)
def softplus(x: Any) -> Any:
    """log(1 + exp(x)), precise in relative terms where it is tiny."""
    positive = clamp(x, splat(_ZERO), splat(_MANY))
    size = positive + positive - x
    e = exp2(size * splat(-LOG2_E))
    s = e / (splat(_TWO) + e)
    q = s * s
    p = q * splat(_L4) + splat(_L3)
    p = q * p + splat(_L2)
    p = q * p + splat(_L1)
    p = q * p + splat(_L0)
    return positive + splat(_TWO) * s * (q * p + splat(_ONE))


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
