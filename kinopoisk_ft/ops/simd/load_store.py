"""Load and store vectors, and allocate and clear memory for kernels.

The argument `memory` is an array or a pointer to float32 or bfloat16. Indices count elements. Numba
has no bfloat16, so a uint16 holds the bits of a bfloat16, which are the upper half of a float32.
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

# LLVM type of the bits of `LANES` bfloat16 values.
_HALF_VECTOR = ir.VectorType(ir.IntType(16), LANES)
# Number of float32 values in a cache line of 64 bytes. A vector that crosses the boundary between
# two lines takes twice as long to load.
_LINE = 16


def _point_to(context: Any, builder: Any, memory_type: Any, memory: Any, index: Any) -> Any:
    if isinstance(memory_type, types.Array):
        memory = context.make_array(memory_type)(context, builder, memory).data
    vector = FLOAT_VECTOR if memory_type.dtype == types.float32 else _HALF_VECTOR
    return builder.bitcast(builder.gep(memory, [index]), vector.as_pointer())


@intrinsic
def load(typing_context: Any, memory: Any, index: Any) -> Any:
    """Load memory[index : index + LANES] as float32, without a bounds check."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory_type = signature.args[0]
        pointer = _point_to(context, builder, memory_type, *args)
        # A vector may start at any element, so only the alignment of one element is sure.
        value = builder.load(pointer, align=memory_type.dtype.bitwidth // 8)
        if memory_type.dtype == types.float32:
            return value
        # A bfloat16 is the upper half of a float32.
        bits = builder.shl(builder.zext(value, INT_VECTOR), INT_VECTOR([16] * LANES))
        return builder.bitcast(bits, FLOAT_VECTOR)

    return vector_type(memory, types.intp), codegen


def _round_to_bfloat16(builder: Any, value: Any) -> Any:
    # To round to the nearest value, with ties to even, add just under half of the last remaining
    # bit, plus one if that bit is 1, and then drop the lower 16 bits.
    bits = builder.bitcast(value, INT_VECTOR)
    odd = builder.and_(builder.lshr(bits, INT_VECTOR([16] * LANES)), INT_VECTOR([1] * LANES))
    rounded = builder.add(bits, builder.add(odd, INT_VECTOR([0x7FFF] * LANES)))
    # Without this selection, rounding could turn a NaN into an infinity or a zero.
    is_number = builder.fcmp_ordered("ord", value, value)
    rounded = builder.select(is_number, rounded, INT_VECTOR([0x7FC00000] * LANES))
    return builder.trunc(builder.lshr(rounded, INT_VECTOR([16] * LANES)), _HALF_VECTOR)


@intrinsic
def store(typing_context: Any, memory: Any, index: Any, value: Any) -> Any:
    """Store a vector in memory[index : index + LANES], without a bounds check.

    The values are converted to the dtype of the memory.
    """

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
    """Prefetch the cache line of memory[index]. The index may lie outside the memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _point_to(context, builder, signature.args[0], *args)
        pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # Arguments of llvm.prefetch: 0 to read or 1 to write; locality from 0 to 3, where 3 is the
        # cache closest to the core; 1 for the data cache.
        read, keep_in_l2, data = (ir.Constant(number, value) for value in (0, 2, 1))
        builder.call(function, [pointer, read, keep_in_l2, data])
        return context.get_dummy_value()

    return types.void(memory, types.intp), codegen


@njit(**OPTIONS)
def allocate(size: int) -> Any:
    """Allocate an uninitialized float32 array (size,), aligned to a cache line."""
    # np.empty does not guarantee this alignment.
    memory = np.empty(size + _LINE, np.float32)
    skip = -(memory.ctypes.data // memory.itemsize) % _LINE
    return memory[skip : skip + size]


@njit(**OPTIONS)
def zero_padding(
    out: Any, row: int, length: int, width: int, real: int, task: int, tasks: int
) -> None:
    """Write zeros to the calling task's share of the padding in one row of `out`.

    Args:
        out: (batch, length, width).
        real: number of steps before the padding.
        task: number of the calling task, from 0 to `tasks` - 1.
        tasks: number of tasks that share the padding. Each of them must call this function.
    """
    # Divide the padding by steps and not by channels, because whole steps are contiguous.
    padding, first = length - real, row * length + real
    start, end = first + padding * task // tasks, first + padding * (task + 1) // tasks
    for i in range(start * width, end * width):
        out[i] = 0
