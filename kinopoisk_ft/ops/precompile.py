"""Compile all CPU kernels in advance, so that no run has to wait for the compiler.

Usage:
    python -m kinopoisk_ft.ops.precompile
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from kinopoisk_ft.ops.backends import NUMBA_ERROR, NUMBA_FIX

log = logging.getLogger(__name__)


def list_kernels() -> Iterator[Callable[..., None]]:
    """Yield all CPU kernels."""
    # Import these modules late, because numba may be missing.
    from kinopoisk_ft.ops.attention import cpu as attention_cpu
    from kinopoisk_ft.ops.conv import cpu as conv_cpu
    from kinopoisk_ft.ops.dropout import cpu as dropout_cpu
    from kinopoisk_ft.ops.rms_norm import cpu as rms_norm_cpu
    from kinopoisk_ft.ops.scan import cpu as scan_cpu

    for module in (scan_cpu, conv_cpu, attention_cpu, rms_norm_cpu):
        yield from module.FORWARD.values()
        yield from module.BACKWARD.values()
    yield from dropout_cpu.KERNELS.values()


def main() -> None:
    """Compile the kernels that are not in numba's disk cache yet."""
    if NUMBA_ERROR:
        log.warning("cannot compile the CPU kernels: %s; please run: %s", NUMBA_ERROR, NUMBA_FIX)
        return
    from kinopoisk_ft.ops.simd.threads import compile_kernel

    start = time.monotonic()
    count = len([compile_kernel(kernel) for kernel in list_kernels()])
    log.info("%d CPU kernels are compiled (%.0f s)", count, time.monotonic() - start)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
