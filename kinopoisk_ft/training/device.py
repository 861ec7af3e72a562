"""Choose the device, move batches to it, and measure its peak memory."""

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

# On Linux the status holds the peak resident memory, and writing 5 to the other file resets it.
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Parameters of mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
# Bytes: larger than any activation of a small batch, and within the range of a 32-bit int.
LARGE = 2**30


def choose_device(request: str) -> torch.device:
    """Return the requested device; `auto` chooses cuda, else mps, else cpu.

    Raises:
        UserError: the device is not available.
    """
    devices = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if request == "auto":
        return torch.device(next(name for name, available in devices.items() if available))
    if not devices[request]:
        raise UserError(
            f"device '{request}' is not available on this machine",
            where="trainer.device",
            fix="use trainer.device=auto; available: "
            + ", ".join(name for name, available in devices.items() if available),
        )
    return torch.device(request)


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch to the device; to CUDA from pinned memory and without waiting."""
    if device.type == "cuda":
        return {k: v.pin_memory().to(device, non_blocking=True) for k, v in batch.items()}
    return {k: v.to(device) for k, v in batch.items()}


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory of this process if the system allows it (CUDA, Linux)."""
    # Memory that earlier jobs of a sweep freed may still be in the process. It is not part of this
    # run.
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
        "the reported peak memory includes earlier runs of this process, because the system does "
        "not allow to reset it (%s)", _CLEAR,
    )  # fmt: skip


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory since the reset, in MiB: of the GPU on CUDA, else of the process.

    It is NaN if the system does not record it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = _read_peak()
    return (_read_process_peak() if peak is None else peak) / 2**20


def _read_peak() -> int | None:
    """Read the peak memory since the reset, in bytes; None if the system does not record it."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    # The unit there is KiB.
    found = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return next((peak * 2**10 for peak in found), None)


def _read_process_peak() -> float:
    """Read the peak memory since the process started, in bytes; NaN if it is unknown."""
    try:
        import resource
    except ImportError:
        # Windows, where psutil has the peak of the working set.
        return float(getattr(psutil.Process().memory_info(), "peak_wset", math.nan))
    # The unit is bytes on macOS and KiB on Linux.
    unit = 1 if sys.platform == "darwin" else 2**10
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds for mapping and trimming memory; return whether this worked.

    By default glibc maps each tensor above 32 MiB anew, with a page fault for every 4 KiB in every
    step. Results do not change.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # An older glibc rejects a threshold above 32 MiB, but can be set to map nothing separately.
    unmapped = mallopt(M_MMAP_THRESHOLD, LARGE) or mallopt(M_MMAP_MAX, 0)
    return bool(mallopt(M_TRIM_THRESHOLD, LARGE) and unmapped)


def release_freed_memory() -> None:
    """Return unused memory to the kernel, with malloc_trim(3) of glibc."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
