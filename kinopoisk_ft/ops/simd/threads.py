"""Run a compiled kernel on PyTorch's own threads.

A kernel is C code `void kernel(int64_t *table)`; its first entry counts the tasks taken, so that a
thread that drew short rows draws more of them. PyTorch's idle OpenMP threads spin for a while and
would starve any thread of another pool, which is why its own pool is used where it can be reached.
"""

from __future__ import annotations

import ctypes
import logging
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from kinopoisk_ft.ops.simd.kernel_cache import CACHED

log = logging.getLogger(__name__)
_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@intrinsic
def take(typing_context: Any, table: Any) -> Any:
    """Return the number of the next task, atomically."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", args[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(table), codegen


@intrinsic
def end_task(typing_context: Any, table: Any, index: Any) -> Any:
    """Count one more task as done, and let other threads see what it wrote."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = ir.Constant(ir.IntType(64), 1)
        builder.atomic_rmw("add", builder.gep(args[0], [args[1]]), one, "release")
        return context.get_dummy_value()

    return types.void(table, types.intp), codegen


@intrinsic
def _done(typing_context: Any, table: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.gep(args[0], [args[1]]), "acquire", 8)

    return types.int64(table, types.intp), codegen


@njit(forceinline=True)
def await_tasks(table: Any, index: int, tasks: int) -> None:
    """Wait until `tasks` tasks are counted as done; the last of each thread are about as long."""
    while _done(table, index) < tasks:
        pass


def _address(target: types.Type) -> Any:
    @intrinsic
    def pointer(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(target)(types.int64), codegen

    return pointer


floats = _address(types.float32)
integers = _address(types.int64)
bfloats = _address(types.uint16)


@cache
def _openmp() -> Callable[..., None] | None:
    """Return the entry of the OpenMP runtime that PyTorch is linked to, if it speaks GNU's."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        log.debug("no GNU OpenMP in %s: kernels run on threads of their own", library)
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@cache
def compiled(kernel: Callable[..., None]) -> Any:
    """Compile `kernel(table)` to C code, or fetch it from numba's cache on disk."""
    return cfunc(types.void(types.CPointer(types.int64)), cache=CACHED)(kernel)


def share(kernel: Any, tasks: int, fields: Sequence[int]) -> None:
    """Run a numba `cfunc` over `tasks` tasks on at most `torch.get_num_threads()` threads.

    fields: sizes, strides and addresses that the kernel finds in its table from index 1 on.
    """
    table = array("q", [0, *fields])
    address, _ = table.buffer_info()
    threads, parallel = min(torch.get_num_threads(), tasks), _openmp()
    if threads > 1 and parallel:
        parallel(kernel.address, address, threads, 0)
        return
    call = _KERNEL(kernel.address)  # ctypes lets go of the interpreter's lock
    if threads < 2:
        call(address)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(call, [address] * threads))
