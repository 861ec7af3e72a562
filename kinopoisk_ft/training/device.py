"""Choose the device, move batches to it, and measure and keep memory."""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import platform
import sys
from pathlib import Path

import psutil
import torch
from torch import Tensor

from kinopoisk_ft.errors import UserError

log = logging.getLogger(__name__)

# Linux: the status has the peak of the resident memory, and writing 5 to the other file resets it.
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Parameters of mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
# Bytes: above any activation of a small batch, and within an int of 32 bits.
LARGE = 2**30


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


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch; from pinned memory and without waiting if the device allows it."""
    if device.type == "cuda":
        return {k: v.pin_memory().to(device, non_blocking=True) for k, v in batch.items()}
    return {k: v.to(device) for k, v in batch.items()}


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak of earlier work in this process, if the system allows it (CUDA, Linux)."""
    # Memory that earlier jobs of a sweep have freed but kept does not belong to this run.
    release_freed_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5")
    except OSError:
        pass
    else:
        if _read_peak() is not None:
            return
    log.warning(
        "peak memory will be that of the whole process, earlier runs included: the system does not "
        "let it be reset (%s)", _CLEAR,
    )  # fmt: skip


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak since the reset, in MiB: of the device on CUDA, else of the process.

    NaN if the system does not record one.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = _read_peak()
    return (_read_process_peak() if peak is None else peak) / 2**20


def _read_peak() -> int | None:
    """Return the bytes of the process's peak since its reset; None if the system has none."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    # The unit there is KiB.
    found = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return next((peak * 2**10 for peak in found), None)


def _read_process_peak() -> float:
    """Return the most bytes that the process ever had; NaN if that is unknown."""
    try:
        import resource
    except ImportError:
        # Windows, where psutil has the peak of the working set.
        return float(getattr(psutil.Process().memory_info(), "peak_wset", math.nan))
    # The unit is bytes on macOS and KiB on Linux.
    unit = 1 if sys.platform == "darwin" else 2**10
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds for mapping and trimming; return whether that was possible.

    By default each tensor above 32 MiB is mapped anew, which costs a page fault for every 4 KiB of
    every step. This changes no result.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # An older glibc refuses a threshold above 32 MiB, but can be told to map nothing separately.
    unmapped = mallopt(M_MMAP_THRESHOLD, LARGE) or mallopt(M_MMAP_MAX, 0)
    return bool(mallopt(M_TRIM_THRESHOLD, LARGE) and unmapped)


def release_freed_memory() -> None:
    """Return memory that nothing refers to to the kernel, by malloc_trim(3) of glibc."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
