"""Choose device and threads, move batches to the device, and measure peak memory."""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import os
import platform
import sys
from pathlib import Path

import psutil
import torch
from joblib.externals.loky import cpu_count
from torch import Tensor

from kinopoisk_ft.errors import UserError

log = logging.getLogger(__name__)

# On Linux, the first file contains the peak resident memory, and writing 5 to the second resets it.
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Parameters of mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
# In bytes: larger than any activation of a small batch, and within the range of a 32-bit int.
LARGE = 2**30


def choose_device(request: str) -> torch.device:
    """Return the requested device; "auto" selects cuda if available, else mps, else cpu.

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
            fix="use trainer.device=auto or one of the devices that are available: "
            + ", ".join(name for name, available in devices.items() if available),
        )
    return torch.device(request)


def limit_threads() -> bool:
    """Reduce PyTorch's threads to the CPU quota of a container, and return whether this was needed.

    PyTorch starts a thread for each core that the process may use, and does not read the quota,
    such as that of `docker run --cpus=2`. More threads would only wait for each other. If the user
    has set OMP_NUM_THREADS, the number stays.
    """
    exceeds = "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cpu_count()
    if exceeds:
        torch.set_num_threads(cpu_count())
    return exceeds


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch to the device. Copies to CUDA are asynchronous."""
    if device.type == "cuda":
        # Copies are asynchronous only if the source is in pinned (page-locked) memory.
        return {k: v.pin_memory().to(device, non_blocking=True) for k, v in batch.items()}
    return {k: v.to(device) for k, v in batch.items()}


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory, so that `peak_memory_mb` returns the peak from now on."""
    # Do not count memory that earlier jobs of a sweep have freed, but that the process still holds.
    release_freed_memory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR.write_text("5")
    except OSError:
        pass
    else:
        # In some containers, the reset succeeds, but the status contains no peak.
        if _read_peak() is not None:
            return
    log.warning(
        "the reported peak memory includes earlier runs in this process, because the system does "
        "not allow resetting it (%s)", _CLEAR,
    )  # fmt: skip


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MiB since `reset_peak_memory`; NaN if it is unknown.

    On CUDA, this is the memory allocated on the GPU. On other devices, this is the resident memory
    of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = _read_peak()
    return (_read_process_peak() if peak is None else peak) / 2**20


def _read_peak() -> int | None:
    """Return the process's peak memory since the last reset, in bytes; None if it is unknown."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    # VmHWM (peak resident memory) is given in KiB.
    found = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return next((peak * 2**10 for peak in found), None)


def _read_process_peak() -> float:
    """Return the peak memory since the start of the process, in bytes; NaN if it is unknown."""
    try:
        import resource
    except ImportError:
        # Windows has no `resource` module, but psutil reports the peak working set there.
        return float(getattr(psutil.Process().memory_info(), "peak_wset", math.nan))
    # ru_maxrss is given in bytes on macOS and in KiB on Linux.
    unit = 1 if sys.platform == "darwin" else 2**10
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def keep_freed_memory(keep: bool = True) -> bool:
    """Make glibc keep freed memory in the process, and return whether glibc does so.

    If `keep` is false, glibc returns the memory of each freed tensor above 1 MiB to the system. The
    next tensor then causes a slow page fault for every 4 KiB.

    A disadvantage of keeping memory is fragmentation. With gradient checkpointing and glibc 2.36,
    unused fragments took three times the memory of all tensors, because glibc rarely reused aligned
    memory (https://sourceware.org/bugzilla/show_bug.cgi?id=14581).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    if not keep:
        # An earlier job of a sweep may have changed all three. The others get their defaults.
        # mallopt(3): at most 65,536 blocks with mmap, and 128 KiB of free memory at the heap's top.
        mallopt(M_MMAP_MAX, 2**16)
        mallopt(M_TRIM_THRESHOLD, 2**17)
        mallopt(M_MMAP_THRESHOLD, 2**20)
        return False
    # Older versions of glibc reject a threshold above 32 MiB, but allow disabling mmap altogether.
    unmapped = mallopt(M_MMAP_THRESHOLD, LARGE) or mallopt(M_MMAP_MAX, 0)
    # mallopt returns 1 if it succeeds, and 0 otherwise.
    return bool(mallopt(M_TRIM_THRESHOLD, LARGE) and unmapped)


def release_freed_memory() -> None:
    """Collect garbage, and return freed memory to the system."""
    # Tensors in reference cycles are freed only by the garbage collector.
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        # 0 is the number of free bytes to keep at the top of the heap (malloc_trim(3)).
        ctypes.CDLL(None).malloc_trim(0)
