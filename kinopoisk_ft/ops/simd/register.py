"""Define a numba type for a vector of `LANES` float32 values.

With this type, the states of a scan stay in vector registers. Numba's auto-vectorizer would keep
the states in memory.

The operators `+`, `-`, `*` and `/` act on each lane. LLVM may fuse `*` and `+` (FMA).

Numba itself passes `typing_context`, the first argument of each intrinsic. Kernels therefore call
intrinsics without this argument.
"""

from __future__ import annotations

import operator
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model


def _count_native_lanes() -> int:
    return 16 if llvm.get_host_cpu_features().get("avx512f", False) else 8


# Number of float32 values in a vector: 512 bits with AVX-512, else 256 bits.
LANES = _count_native_lanes()
# LLVM types of vectors. Integers hold the bits of floats, or the indices of a shuffle.
FLOAT_VECTOR = ir.VectorType(ir.FloatType(), LANES)
INT_VECTOR = ir.VectorType(ir.IntType(32), LANES)


class Vector(types.Type):
    """The numba type of a vector of `LANES` float32 values."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


vector_type = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: types.Type) -> None:
        super().__init__(manager, fe_type, FLOAT_VECTOR)


def _define_operator(function: Any, instruction: str) -> None:
    """Make numba compile a Python operator on two vectors to one LLVM instruction."""

    @intrinsic
    def apply(typing_context: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            # "contract" allows fused multiply-adds, but no reordering of additions.
            return getattr(builder, instruction)(*args, flags=("contract",))

        return vector_type(vector_type, vector_type), codegen

    @overload(function)
    def choose(a: Any, b: Any) -> Any:
        # None makes numba use its own implementation for other types.
        if not (isinstance(a, Vector) and isinstance(b, Vector)):
            return None

        def implementation(a: Any, b: Any) -> Any:
            return apply(a, b)

        return implementation


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")
_define_operator(operator.truediv, "fdiv")


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """Return a vector with the same float32 in every lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        undefined = ir.Constant(FLOAT_VECTOR, ir.Undefined)
        single = builder.insert_element(undefined, args[0], ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(INT_VECTOR, [0] * LANES)
        return builder.shuffle_vector(single, undefined, mask)

    return vector_type(types.float32), codegen


@intrinsic
def sum_lanes(typing_context: Any, value: Any) -> Any:
    """Return the float32 sum of all lanes, added pairwise."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (value,), width = args, LANES
        # Each pass adds the upper half to the lower half.
        while width > 1:
            width //= 2
            index = ir.VectorType(ir.IntType(32), 2 * width)
            mask = ir.Constant(index, [(i + width) % (2 * width) for i in range(2 * width)])
            value = builder.fadd(value, builder.shuffle_vector(value, value, mask))
            half = ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(width)))
            value = builder.shuffle_vector(value, value, half)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.float32(vector_type), codegen


@intrinsic
def clamp(typing_context: Any, value: Any, low: Any, high: Any) -> Any:
    """Limit each lane to low .. high. NaN stays NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # An ordered comparison with NaN is false, which selects the NaN unchanged.
        value, low, high = args
        value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
        return builder.select(builder.fcmp_ordered(">", value, high), high, value)

    return vector_type(vector_type, vector_type, vector_type), codegen


@intrinsic
def maximum(typing_context: Any, a: Any, b: Any) -> Any:
    """Return the larger of a and b in each lane; b if a or b is NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return vector_type(vector_type, vector_type), codegen
