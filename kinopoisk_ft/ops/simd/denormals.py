"""Flush denormal numbers to zero while a kernel runs.

Denormals are float32 numbers below about 1e-38. A value that decays over hundreds of steps becomes
denormal. With denormals, a processor takes about a hundred times as long for each operation. The
mode that flushes denormals is set separately in each thread.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

_ARCHITECTURE = llvm.get_process_triple().split("-")[0]
# Bits to set in the control register. On x86, bit 15 of MXCSR flushes results and bit 6 operands.
# On ARM, bit 24 of FPCR flushes both. On other architectures, the mode is not changed.
_FLUSH_BITS = {"x86_64": 0x8040, "aarch64": 1 << 24, "arm64": 1 << 24}.get(_ARCHITECTURE, 0)


def _read_mode(builder: Any) -> Any:
    wide, byte_pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    if _ARCHITECTURE == "x86_64":
        # The instruction can write MXCSR only to memory.
        memory = builder.alloca(ir.IntType(32))
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer])
        function = get_or_insert_function(builder.module, kind, "llvm.x86.sse.stmxcsr")
        builder.call(function, [builder.bitcast(memory, byte_pointer)])
        return builder.zext(builder.load(memory), wide)
    kind = ir.FunctionType(wide, [])
    function = get_or_insert_function(builder.module, kind, "llvm.aarch64.get.fpcr")
    return builder.call(function, [])


def _write_mode(builder: Any, mode: Any) -> None:
    wide, byte_pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    if _ARCHITECTURE == "x86_64":
        memory = builder.alloca(ir.IntType(32))
        builder.store(builder.trunc(mode, ir.IntType(32)), memory)
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer])
        function = get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
        builder.call(function, [builder.bitcast(memory, byte_pointer)])
    else:
        kind = ir.FunctionType(ir.VoidType(), [wide])
        function = get_or_insert_function(builder.module, kind, "llvm.aarch64.set.fpcr")
        builder.call(function, [mode])


@intrinsic
def flush_denormals(typing_context: Any) -> Any:
    """Make this thread flush denormals, and return the previous mode."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not _FLUSH_BITS:
            return ir.Constant(ir.IntType(64), 0)
        before = _read_mode(builder)
        _write_mode(builder, builder.or_(before, ir.Constant(before.type, _FLUSH_BITS)))
        return before

    return types.int64(), codegen


@intrinsic
def restore_mode(typing_context: Any, mode: Any) -> Any:
    """Restore the previous floating-point mode, because PyTorch also uses this thread."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _FLUSH_BITS:
            _write_mode(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
