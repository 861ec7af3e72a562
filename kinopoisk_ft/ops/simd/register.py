"""A SIMD register as a numba type: `LANES` floats that live in one (or a few) vector registers.

Numba's auto-vectoriser keeps the states of a scan in memory; with an explicit vector type they stay
in registers. `+`, `-` and `*` act lane by lane and may be contracted to fused multiply-adds.
"""

from __future__ import annotations

import operator
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model


def _native_lanes() -> int:
    """Return the width that pays: 16 floats where AVX-512 is present, else 8."""
    return 16 if llvm.get_host_cpu_features().get("avx512f", False) else 8


LANES = _native_lanes()
FLOATS = ir.VectorType(ir.FloatType(), LANES)
INTS = ir.VectorType(ir.IntType(32), LANES)


class Lanes(types.Type):
    """The numba type of a register of `LANES` float32."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


lanes_type = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: types.Type) -> None:
        super().__init__(manager, fe_type, FLOATS)


def _define(function: Any, instruction: str) -> None:
    """Give an operator on two `Lanes` its LLVM instruction."""

    @intrinsic
    def apply(typing_context: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args, flags=("contract",))

        return lanes_type(lanes_type, lanes_type), codegen

    @overload(function)
    def choose(a: Any, b: Any) -> Any:
        if not (isinstance(a, Lanes) and isinstance(b, Lanes)):
            return None

        def implementation(a: Any, b: Any) -> Any:
            return apply(a, b)

        return implementation


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
_define(operator.truediv, "fdiv")


def _pointer(context: Any, builder: Any, memory_type: Any, memory: Any, index: Any) -> Any:
    if isinstance(memory_type, types.Array):
        memory = context.make_array(memory_type)(context, builder, memory).data
    return builder.bitcast(builder.gep(memory, [index]), FLOATS.as_pointer())


@intrinsic
def load(typing_context: Any, memory: Any, index: Any) -> Any:
    """Read `LANES` floats of a flat float32 array or pointer from `index` on (no bounds check)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], *args), align=4)

    return lanes_type(memory, types.intp), codegen


@intrinsic
def store(typing_context: Any, memory: Any, index: Any, value: Any) -> Any:
    """Write `LANES` floats to a flat float32 array or pointer (no bounds check)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *args[:2])
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(memory, types.intp, lanes_type), codegen


@intrinsic
def prefetch(typing_context: Any, memory: Any, index: Any) -> Any:
    """Ask for the cache line of `index`, which may lie outside the array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], *args)
        pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, keep_in_l2, data = (ir.Constant(number, value) for value in (0, 2, 1))
        builder.call(function, [pointer, read, keep_in_l2, data])
        return context.get_dummy_value()

    return types.void(memory, types.intp), codegen


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """Fill a register with one float."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        undefined = ir.Constant(FLOATS, ir.Undefined)
        single = builder.insert_element(undefined, args[0], ir.Constant(ir.IntType(32), 0))
        mask = ir.Constant(INTS, [0] * LANES)
        return builder.shuffle_vector(single, undefined, mask)

    return lanes_type(types.float32), codegen


@intrinsic
def total(typing_context: Any, value: Any) -> Any:
    """Sum the lanes of a register, pairwise."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (value,), width = args, LANES
        while width > 1:
            width //= 2
            fold = ir.VectorType(ir.IntType(32), 2 * width)
            mask = ir.Constant(fold, [(i + width) % (2 * width) for i in range(2 * width)])
            value = builder.fadd(value, builder.shuffle_vector(value, value, mask))
            half = ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(width)))
            value = builder.shuffle_vector(value, value, half)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.float32(lanes_type), codegen


def _folded(builder: Any, pair: Any, parts: int) -> Any:
    """Add the upper half of each of the `parts` equal parts of two registers to its lower half."""
    half = pair[0].type.count // parts // 2
    numbers = [2 * half * part + i for part in range(len(pair) * parts) for i in range(half)]
    kind = ir.VectorType(ir.IntType(32), len(numbers))
    low = builder.shuffle_vector(pair[0], pair[-1], ir.Constant(kind, numbers))
    high = builder.shuffle_vector(pair[0], pair[-1], ir.Constant(kind, [i + half for i in numbers]))
    return builder.fadd(low, high)


@intrinsic
def store_totals(
    typing_context: Any, memory: Any, index: Any, a: Any, b: Any, c: Any, d: Any
) -> Any:
    """Write the sums of the lanes of four registers side by side; adds in the order of `total`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first, second = _folded(builder, args[2:4], 1), _folded(builder, args[4:6], 1)
        sums = _folded(builder, (first, second), 2)
        while sums.type.count > 4:
            sums = _folded(builder, (sums,), 4)
        pointer = builder.bitcast(
            _pointer(context, builder, signature.args[0], *args[:2]), sums.type.as_pointer()
        )
        builder.store(sums, pointer, align=4)
        return context.get_dummy_value()

    return types.void(memory, types.intp, *[lanes_type] * 4), codegen


@intrinsic
def clamp(typing_context: Any, value: Any, low: Any, high: Any) -> Any:
    """Bound each lane; a NaN stays a NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, low, high = args
        value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
        return builder.select(builder.fcmp_ordered(">", value, high), high, value)

    return lanes_type(lanes_type, lanes_type, lanes_type), codegen


@intrinsic
def larger(typing_context: Any, a: Any, b: Any) -> Any:
    """Return the larger of two numbers in each lane; b where a is a NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return lanes_type(lanes_type, lanes_type), codegen
