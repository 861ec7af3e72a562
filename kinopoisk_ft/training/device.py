"""Which device trains, and how much memory it took."""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor

from kinopoisk_ft.errors import UserError

log = logging.getLogger(__name__)

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_earlier = 0.0  # MiB: the process's peak before the system was made to forget it for `peak_growth`


def choose_device(request: str) -> torch.device:
    """Return the device asked for (`auto`: cuda, else mps, else cpu); or raise UserError."""
    here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if request == "auto":
        return torch.device(next(name for name, available in here.items() if available))
    if not here[request]:
        raise UserError(
            f"device '{request}' is not available on this machine",
            where="trainer.device",
            fix=f"use trainer.device=auto; available: {', '.join(n for n in here if here[n])}",
        )
    return torch.device(request)


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak of earlier work in this process, where the system allows it (CUDA, Linux)."""
    global _earlier
    _earlier = 0.0
    release_freed_memory()  # what earlier jobs of a sweep kept is not this run's
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif not _forgotten():
        log.warning(
            "the peak of memory will be that of the whole process, of earlier runs in it too: the "
            "system does not let it be forgotten (%s)", _CLEAR,
        )  # fmt: skip


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak since the reset, MiB: the device's on CUDA, else the process's.

    NaN where the system does not record one.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    highest = _highest()
    if highest is not None:
        return max(_earlier, highest / 2**10)
    return _peak_of_process() / 2**20


def _peak_of_process() -> float:
    """Return the most bytes of memory that the process ever had; NaN where that is unknown."""
    try:
        import resource
    except ImportError:  # Windows, where psutil has the peak of the working set
        return float(getattr(psutil.Process().memory_info(), "peak_wset", math.nan))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) * (1 if sys.platform == "darwin" else 2**10)


def can_measure_growth() -> bool:
    """Return whether `peak_growth` works here: Linux alone, outside of some containers, forgets.

    It is tried, since rights do not tell; the peak so far is kept in mind.
    """
    global _earlier
    _earlier = peak_memory_mb(torch.device("cpu"))
    return _forgotten()


def peak_growth(work: Callable[[], None]) -> int:
    """Return by how many bytes the process's resident memory rose at most while `work` ran.

    Memory that was freed but kept is handed back first: the work would be given it unnoticed.
    """
    global _earlier
    release_freed_memory()
    _earlier = peak_memory_mb(torch.device("cpu"))
    _forgotten()
    before = _highest() or 0
    work()
    return ((_highest() or 0) - before) * 2**10


def _forgotten() -> bool:
    """Make the system forget the process's peak; returns whether it tells one and lets it be."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return _highest() is not None


def _highest() -> int | None:
    """Return the process's peak since it was forgotten, KiB; None where the system has no word."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


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


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch; from pinned memory and without waiting where the device can."""
    if device.type == "cuda":
        return {k: v.pin_memory().to(device, non_blocking=True) for k, v in batch.items()}
    return {k: v.to(device) for k, v in batch.items()}
