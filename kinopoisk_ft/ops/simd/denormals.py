"""Numbers too small for a normal float32 count as zero while a kernel runs.

What decays over hundreds of steps ends below 1e-38, where a processor takes a hundred times as long
for each operation; results are the same down to that size. The mode is a thread's own.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_ARCHITECTURE = llvm.get_process_triple().split("-")[0]
# Of x86's MXCSR: flush results (bit 15) and operands (bit 6). Of ARM's FPCR: bit 24 does both.
_ZERO_BITS = {"x86_64": 0x8040, "aarch64": 1 << 24, "arm64": 1 << 24}.get(_ARCHITECTURE, 0)


def _read(builder: Any, module: Any) -> Any:
    """Return the mode as a 64-bit integer."""
    wide = ir.IntType(64)
    if _ARCHITECTURE == "x86_64":
        room = builder.alloca(ir.IntType(32))
        read = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
        name = "llvm.x86.sse.stmxcsr"
        function = module.globals.get(name) or ir.Function(module, read, name)
        builder.call(function, [builder.bitcast(room, ir.IntType(8).as_pointer())])
        return builder.zext(builder.load(room), wide)
    name = "llvm.aarch64.get.fpcr"
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(wide, []), name)
    return builder.call(function, [])


def _write(builder: Any, module: Any, mode: Any) -> None:
    if _ARCHITECTURE == "x86_64":
        room = builder.alloca(ir.IntType(32))
        builder.store(builder.trunc(mode, ir.IntType(32)), room)
        write = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
        name, argument = (
            "llvm.x86.sse.ldmxcsr",
            builder.bitcast(room, ir.IntType(8).as_pointer()),
        )
    else:
        write = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
        name, argument = "llvm.aarch64.set.fpcr", mode
    builder.call(module.globals.get(name) or ir.Function(module, write, name), [argument])


@intrinsic
def flush_tiny(typing_context: Any) -> Any:
    """Let tiny numbers count as zero in this thread; returns the mode before, for `restore`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not _ZERO_BITS:
            return ir.Constant(ir.IntType(64), 0)
        before = _read(builder, builder.module)
        _write(builder, builder.module, builder.or_(before, ir.Constant(before.type, _ZERO_BITS)))
        return before

    return types.int64(), codegen


@intrinsic
def restore(typing_context: Any, mode: Any) -> Any:
    """Put this thread's mode back: PyTorch's own operators run in the same threads."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _ZERO_BITS:
            _write(builder, builder.module, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
