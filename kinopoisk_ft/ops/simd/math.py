"""Approximate exponential functions of vectors, with errors of a few float32 ulps."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils
from numba.extending import intrinsic

from kinopoisk_ft.ops.simd.register import (
    FLOAT_VECTOR,
    INT_VECTOR,
    LANES,
    clamp,
    splat,
    vector_type,
)

_f = np.float32
LOG2_E = _f(1.4426950408889634)
LN_2 = _f(0.6931471805599453)
# 2**r = 1 + r (E0 + r (E1 + ...)) for |r| <= 1/2. The fit is weighted so that the error vanishes at
# r = 0, because a scan multiplies many decays close to one, and their errors add up.
_E0, _E1, _E2 = _f(0.69314706), _f(0.24022295), _f(0.055506997)
_E3, _E4 = _f(0.0096689984), _f(0.001326638)
# atanh(s) / s = 1 + s^2 (L0 + s^2 (L1 + ...)) for 0 <= s <= 1/3.
_L0, _L1, _L2 = _f(0.33333334), _f(0.19999817), _f(0.14297026)
_L3, _L4 = _f(0.10847408), _f(0.11618348)
_ONE, _TWO, _ZERO, _LARGE = _f(1.0), _f(2.0), _f(0.0), _f(3.0e38)


@njit(forceinline=True)
def exp2(x: Any) -> Any:
    """Compute 2**x in float32: inf if x >= 128, and some value in [0, 2**-126] if x < -126."""
    r, power = split(x)
    p = r * splat(_E4) + splat(_E3)
    p = r * p + splat(_E2)
    p = r * p + splat(_E1)
    p = r * p + splat(_E0)
    return scale(r * p + splat(_ONE), power)


@njit(forceinline=True)
def sigmoid(x: Any) -> Any:
    """Compute 1 / (1 + exp(-x))."""
    return splat(_ONE) / (splat(_ONE) + exp2(x * splat(-LOG2_E)))


@njit(forceinline=True)
def softplus(x: Any) -> Any:
    """Compute log(1 + exp(x)). The relative error is small even if the result is tiny."""
    # softplus(x) = max(x, 0) + log(1 + exp(-|x|)), where `positive` is max(x, 0), `size` is |x| and
    # e is exp(-|x|).
    positive = clamp(x, splat(_ZERO), splat(_LARGE))
    size = positive + positive - x
    # log(1 + e) = 2 atanh(e / (2 + e)) keeps the digits of a small e, which 1 + e would lose.
    e = exp2(size * splat(-LOG2_E))
    s = e / (splat(_TWO) + e)
    q = s * s
    p = q * splat(_L4) + splat(_L3)
    p = q * p + splat(_L2)
    p = q * p + splat(_L1)
    p = q * p + splat(_L0)
    return positive + splat(_TWO) * s * (q * p + splat(_ONE))


_INT = ir.IntType(32)
# Rounding modes of AVX-512 instructions: 8 rounds to the nearest integer and raises no exception, 4
# uses the current mode of the thread.
_NEAREST, _CURRENT = 8, 4
# Adding 1.5 * 2**23 to a float32 rounds it to an integer, which the low bits of the mantissa then
# contain. Subtracting 1.5 * 2**23 again gives the integer as a float32.
_ROUND = np.float32(12582912.0)
# Without AVX-512, 2**k is computed in the exponent bits, which limits k to this range.
_LOWEST, _HIGHEST = np.float32(-126.0), np.float32(128.0)


def _call_avx512(builder: Any, name: str, *args: Any) -> Any:
    *operands, mode = args
    # The mask -1 selects all 16 lanes, so the values for other lanes are undefined.
    operands += [FLOAT_VECTOR(ir.Undefined), ir.IntType(16)(-1), _INT(mode)]
    kind = ir.FunctionType(FLOAT_VECTOR, [x.type for x in operands])
    name = f"llvm.x86.avx512.mask.{name}.ps.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)


@intrinsic
def _subtract_integer(typing_context: Any, x: Any) -> Any:
    # The instruction subtracts the nearest integer from x. The result is 0 if x is infinite.
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call_avx512(builder, "reduce", *args, _INT(_NEAREST), _CURRENT)

    return vector_type(vector_type), codegen


@intrinsic
def _scale_avx512(typing_context: Any, value: Any, power: Any) -> Any:
    # The instruction multiplies by 2**power. The lanes of `power` are integers as float32.
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call_avx512(builder, "scalef", *args, _CURRENT)

    return vector_type(vector_type, vector_type), codegen


@intrinsic
def _scale_any(typing_context: Any, value: Any, rounded: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, rounded = (builder.bitcast(arg, INT_VECTOR) for arg in args)
        # To multiply by 2**k, add k to the exponent, which starts at bit 23 of a float32. The low
        # mantissa bits of `rounded` contain k.
        shift = ir.Constant(INT_VECTOR, [23] * LANES)
        return builder.bitcast(builder.add(bits, builder.shl(rounded, shift)), FLOAT_VECTOR)

    return vector_type(vector_type, vector_type), codegen


@njit(forceinline=True)
def _split_avx512(x: Any) -> Any:
    r = _subtract_integer(x)
    return r, x - r


@njit(forceinline=True)
def _split_any(x: Any) -> Any:
    x = clamp(x, splat(_LOWEST), splat(_HIGHEST))
    rounded = x + splat(_ROUND)
    return x - (rounded - splat(_ROUND)), rounded


_HAS_AVX512 = LANES == 16 and llvm.get_host_cpu_features().get("avx512dq", False)
# `split(x)` returns r with |r| <= 1/2, and a power such that `scale(value, power)` multiplies by
# 2**(x - r). Without AVX-512, x is first clamped to -126 .. 128.
split = _split_avx512 if _HAS_AVX512 else _split_any
scale = _scale_avx512 if _HAS_AVX512 else _scale_any
