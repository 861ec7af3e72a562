"""Keep freed memory in the process: on Linux it would go back to the kernel at every step."""

from __future__ import annotations

import ctypes
import gc
import platform

# Parameters of mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
LARGE = 2**30  # above any activation of a small batch; int is 32 bits wide


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds for mapping and trimming; returns whether it was possible.

    By default each tensor above 32 MiB is mapped afresh, which costs a page fault for every 4 KiB
    of every step. It changes no result.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # An older glibc takes no threshold above 32 MiB, but can be told to map nothing apart.
    unmapped = mallopt(M_MMAP_THRESHOLD, LARGE) or mallopt(M_MMAP_MAX, 0)
    return bool(mallopt(M_TRIM_THRESHOLD, LARGE) and unmapped)


def release_freed_memory() -> None:
    """Hand what nothing refers to back to the kernel now, as malloc_trim(3) does for glibc."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
