"""Run a compiled kernel on PyTorch's own threads.

A kernel is a C function `void kernel(int64_t *table)`. Every thread calls the kernel with the same
table, and starts tasks until none is left. Entry 0 of the table counts the started tasks. The other
entries are sizes, strides and addresses.

Another thread pool would be slower: after each operator, PyTorch's threads wait for new work in a
busy loop, which occupies the cores for a while. Another pool is used only if PyTorch's pool cannot
be called.
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
from numba import cfunc, types
from numba.extending import intrinsic

from kinopoisk_ft.ops.simd.kernel_cache import CACHED

log = logging.getLogger(__name__)
_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@intrinsic
def take_task(typing_context: Any, table: Any) -> Any:
    """Take the next task, and return its number, counted from 0.

    table[0] is the number of tasks taken so far, and is incremented atomically.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # "monotonic" is enough, because no data is passed between tasks at this point.
        return builder.atomic_rmw("add", args[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(table), codegen


def _define_cast(target: types.Type) -> Any:
    @intrinsic
    def cast(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(target)(types.int64), codegen

    return cast


as_float32 = _define_cast(types.float32)
as_int64 = _define_cast(types.int64)
# Numba has no bfloat16, so uint16 holds its bits, which `load` and `store` convert.
as_bfloat16 = _define_cast(types.uint16)


@cache
def _find_openmp() -> Callable[..., None] | None:
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        log.debug("%s has no GOMP_parallel, so kernels run on a separate thread pool", library)
        return None
    # void GOMP_parallel(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags)
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


# Cached, because every call of an operator needs the compiled kernel.
@cache
def compile_kernel(kernel: Callable[..., None]) -> Any:
    """Compile a kernel to a C function, or load the function from numba's disk cache."""
    return cfunc(types.void(types.CPointer(types.int64)), cache=CACHED)(kernel)


def run_kernel(kernel: Callable[..., None], tasks: int, fields: Sequence[int]) -> None:
    """Run a kernel on PyTorch's threads.

    Args:
        tasks: number of tasks; the kernel runs on at most this many threads.
        fields: entries of the kernel's table after entry 0, which counts the started tasks.
    """
    code = compile_kernel(kernel)
    # An array of int64. Index 0 counts the tasks that have been started.
    table = array("q", [0, *fields])
    address, _ = table.buffer_info()
    threads, parallel = min(torch.get_num_threads(), tasks), _find_openmp()
    if threads > 1 and parallel:
        # Every thread runs the kernel, which starts tasks until none is left.
        parallel(code.address, address, threads, 0)
        return
    # A ctypes call releases the GIL, so that the threads run in parallel.
    call = _KERNEL(code.address)
    if threads < 2:
        call(address)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(call, [address] * threads))
