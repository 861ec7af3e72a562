"""Move vectors between registers and memory, and allocate and clear memory for kernels.

Memory is a flat array or a pointer of float32, or a pointer of bfloat16: the upper half of a
float32, which has the type uint16 here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.register import FLOAT_VECTOR, INT_VECTOR, LANES, vector_type

_HALF_VECTOR = ir.VectorType(ir.IntType(16), LANES)
# Float32 in a cache line: a vector across two lines costs twice.
_LINE = 16


def _point_to(context: Any, builder: Any, memory_type: Any, memory: Any, index: Any) -> Any:
    """Get the pointer to the vector that starts at an index."""
    if isinstance(memory_type, types.Array):
        memory = context.make_array(memory_type)(context, builder, memory).data
    vector = FLOAT_VECTOR if memory_type.dtype == types.float32 else _HALF_VECTOR
    return builder.bitcast(builder.gep(memory, [index]), vector.as_pointer())


@intrinsic
def load(typing_context: Any, memory: Any, index: Any) -> Any:
    """Load `LANES` numbers from `index` on as float32, without a bounds check."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory_type = signature.args[0]
        pointer = _point_to(context, builder, memory_type, *args)
        value = builder.load(pointer, align=memory_type.dtype.bitwidth // 8)
        if memory_type.dtype == types.float32:
            return value
        # A bfloat16 is the upper half of a float32.
        bits = builder.shl(builder.zext(value, INT_VECTOR), INT_VECTOR([16] * LANES))
        return builder.bitcast(bits, FLOAT_VECTOR)

    return vector_type(memory, types.intp), codegen


def _round_to_bfloat16(builder: Any, value: Any) -> Any:
    """Round float32 lanes to the nearest bfloat16, ties to even."""
    # Add just under half of the last bit that remains, plus one if that bit is odd, and cut off.
    bits = builder.bitcast(value, INT_VECTOR)
    odd = builder.and_(builder.lshr(bits, INT_VECTOR([16] * LANES)), INT_VECTOR([1] * LANES))
    rounded = builder.add(bits, builder.add(odd, INT_VECTOR([0x7FFF] * LANES)))
    # Rounding could carry a NaN's mantissa over into an infinity or a zero.
    is_number = builder.fcmp_ordered("ord", value, value)
    rounded = builder.select(is_number, rounded, INT_VECTOR([0x7FC00000] * LANES))
    return builder.trunc(builder.lshr(rounded, INT_VECTOR([16] * LANES)), _HALF_VECTOR)


@intrinsic
def store(typing_context: Any, memory: Any, index: Any, value: Any) -> Any:
    """Store `LANES` numbers from `index` on, without a bounds check."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory_type, value = signature.args[0], args[2]
        if memory_type.dtype != types.float32:
            value = _round_to_bfloat16(builder, value)
        pointer = _point_to(context, builder, memory_type, *args[:2])
        builder.store(value, pointer, align=memory_type.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(memory, types.intp, vector_type), codegen


@intrinsic
def prefetch(typing_context: Any, memory: Any, index: Any) -> Any:
    """Prefetch the cache line of `index`, which may lie outside the memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _point_to(context, builder, signature.args[0], *args)
        pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # LLVM's arguments: 0 read, 1 write; locality, where 3 is the closest cache; 1 data cache.
        read, keep_in_l2, data = (ir.Constant(number, value) for value in (0, 2, 1))
        builder.call(function, [pointer, read, keep_in_l2, data])
        return context.get_dummy_value()

    return types.void(memory, types.intp), codegen


def _add_halves(builder: Any, vectors: Any, parts: int) -> Any:
    """Join one or two vectors; add the upper to the lower half of each of their `parts` parts."""
    half = vectors[0].type.count // parts // 2
    low = [2 * half * part + i for part in range(len(vectors) * parts) for i in range(half)]
    index = ir.VectorType(ir.IntType(32), len(low))
    lower, upper = (
        builder.shuffle_vector(
            vectors[0], vectors[-1], ir.Constant(index, [i + offset for i in low])
        )
        for offset in (0, half)
    )
    return builder.fadd(lower, upper)


@intrinsic
def store_sums(typing_context: Any, memory: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Store the sums over lanes of four vectors one after the other, in float32.

    The order of the additions is the same as in `sum_lanes`.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # Join a and b, c and d, then all four; then fold until one lane of each is left.
        first, second = _add_halves(builder, args[2:4], 1), _add_halves(builder, args[4:6], 1)
        sums = _add_halves(builder, (first, second), 2)
        while sums.type.count > 4:
            sums = _add_halves(builder, (sums,), 4)
        pointer = _point_to(context, builder, signature.args[0], *args[:2])
        builder.store(sums, builder.bitcast(pointer, sums.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(memory, types.intp, *[vector_type] * 4), codegen


@njit(**OPTIONS)
def allocate(size: int) -> Any:
    """Allocate `size` float32 that start at a cache line; their values are undefined."""
    # np.empty does not guarantee this alignment.
    memory = np.empty(size + _LINE, np.float32)
    skip = -(memory.ctypes.data // memory.itemsize) % _LINE
    return memory[skip : skip + size]


@njit(**OPTIONS)
def zero_padding(
    out: Any, row: int, length: int, width: int, real: int, task: int, tasks: int
) -> None:
    """Zero the steps from `real` on in a row of out (batch, length, width).

    `tasks` tasks work on the row, and each of them zeroes some of the steps.
    """
    # The tasks divide the padding by steps and not by channels: whole steps are contiguous.
    padding, first = length - real, row * length + real
    start, end = first + padding * task // tasks, first + padding * (task + 1) // tasks
    for i in range(start * width, end * width):
        out[i] = 0
