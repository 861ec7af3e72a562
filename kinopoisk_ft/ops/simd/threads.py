"""Run a compiled kernel on PyTorch's own threads.

A kernel is C code `void kernel(int64_t *table)`. The first entry of the table counts the tasks that
are taken, so that a thread with short rows takes more of them. Idle OpenMP threads of PyTorch spin
for a while and would slow down the threads of another pool; therefore PyTorch's own pool is used if
it can be called.
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
def take_task(typing_context: Any, table: Any) -> Any:
    """Take the number of the next task, atomically."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", args[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(table), codegen


@intrinsic
def finish_task(typing_context: Any, table: Any, index: Any) -> Any:
    """Count one more finished task in table[index], after all that the task wrote."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = ir.Constant(ir.IntType(64), 1)
        # "release" here and "acquire" below make the task's results visible to other threads.
        builder.atomic_rmw("add", builder.gep(args[0], [args[1]]), one, "release")
        return context.get_dummy_value()

    return types.void(table, types.intp), codegen


@intrinsic
def _count_finished(typing_context: Any, table: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.gep(args[0], [args[1]]), "acquire", 8)

    return types.int64(table, types.intp), codegen


@njit(forceinline=True)
def wait_for_tasks(table: Any, index: int, tasks: int) -> None:
    """Wait until table[index] counts `tasks` finished tasks.

    A busy loop is enough: the last tasks of all threads end at about the same time.
    """
    while _count_finished(table, index) < tasks:
        pass


def _define_cast(target: types.Type) -> Any:
    """Define a function for kernels that converts an address to a pointer."""

    @intrinsic
    def cast(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(target)(types.int64), codegen

    return cast


as_float32 = _define_cast(types.float32)
as_int64 = _define_cast(types.int64)
# Numba has no bfloat16; `load` and `store` convert its bits.
as_bfloat16 = _define_cast(types.uint16)


@cache
def _find_openmp() -> Callable[..., None] | None:
    """Find the entry point of PyTorch's OpenMP runtime; None if it lacks GNU's interface."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        log.debug("no GNU OpenMP in %s: kernels run on a separate thread pool", library)
        return None
    # void GOMP_parallel(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags)
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


# Cached, because operators ask at each call.
@cache
def compile_kernel(kernel: Callable[..., None]) -> Any:
    """Compile `kernel(table)` to C code, or load it from numba's cache on disk."""
    return cfunc(types.void(types.CPointer(types.int64)), cache=CACHED)(kernel)


def run_kernel(kernel: Callable[..., None], tasks: int, fields: Sequence[int]) -> None:
    """Run a kernel over `tasks` tasks on at most `torch.get_num_threads()` threads.

    fields: sizes, strides and addresses, in the kernel's table from index 1 on.
    """
    code = compile_kernel(kernel)
    # int64; index 0 is the counter of tasks.
    table = array("q", [0, *fields])
    address, _ = table.buffer_info()
    threads, parallel = min(torch.get_num_threads(), tasks), _find_openmp()
    if threads > 1 and parallel:
        # Every thread runs the kernel, which takes tasks until none is left.
        parallel(code.address, address, threads, 0)
        return
    # A ctypes call releases the interpreter's lock.
    call = _KERNEL(code.address)
    if threads < 2:
        call(address)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(call, [address] * threads))
