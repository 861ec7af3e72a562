"""Flush denormals to zero while a kernel runs: numbers too small for a normal float32.

A value that decays over hundreds of steps falls below 1e-38, where an operation takes a processor a
hundred times as long. Larger results are not affected. The mode belongs to a thread.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_ARCHITECTURE = llvm.get_process_triple().split("-")[0]
# In MXCSR of x86, bit 15 flushes results and bit 6 operands. In FPCR of ARM, bit 24 flushes both.
# On other architectures the mode is not changed.
_FLUSH_BITS = {"x86_64": 0x8040, "aarch64": 1 << 24, "arm64": 1 << 24}.get(_ARCHITECTURE, 0)


def _get_function(module: Any, kind: Any, name: str) -> Any:
    """Get the declaration of an LLVM intrinsic, which a module may contain only once."""
    return module.globals.get(name) or ir.Function(module, kind, name)


def _read_mode(builder: Any) -> Any:
    """Read the floating-point mode of this thread as a 64-bit integer."""
    wide, byte_pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    if _ARCHITECTURE == "x86_64":
        # The instruction writes MXCSR to memory.
        memory = builder.alloca(ir.IntType(32))
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer])
        function = _get_function(builder.module, kind, "llvm.x86.sse.stmxcsr")
        builder.call(function, [builder.bitcast(memory, byte_pointer)])
        return builder.zext(builder.load(memory), wide)
    kind = ir.FunctionType(wide, [])
    return builder.call(_get_function(builder.module, kind, "llvm.aarch64.get.fpcr"), [])


def _write_mode(builder: Any, mode: Any) -> None:
    """Set the floating-point mode of this thread."""
    wide, byte_pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    if _ARCHITECTURE == "x86_64":
        memory = builder.alloca(ir.IntType(32))
        builder.store(builder.trunc(mode, ir.IntType(32)), memory)
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer])
        function = _get_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
        builder.call(function, [builder.bitcast(memory, byte_pointer)])
    else:
        kind = ir.FunctionType(ir.VoidType(), [wide])
        builder.call(_get_function(builder.module, kind, "llvm.aarch64.set.fpcr"), [mode])


@intrinsic
def flush_denormals(typing_context: Any) -> Any:
    """Flush denormals to zero in this thread; return the previous mode for `restore_mode`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not _FLUSH_BITS:
            return ir.Constant(ir.IntType(64), 0)
        before = _read_mode(builder)
        _write_mode(builder, builder.or_(before, ir.Constant(before.type, _FLUSH_BITS)))
        return before

    return types.int64(), codegen


@intrinsic
def restore_mode(typing_context: Any, mode: Any) -> Any:
    """Restore the mode of this thread, because PyTorch's operators run in the same threads."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _FLUSH_BITS:
            _write_mode(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
