"""Which device trains, and how much memory it took."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.allocator import release_freed_memory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_earlier = 0.0  # MiB: the process's peak before `peak_growth` made the system forget it


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
    elif _STATUS.exists():
        _CLEAR.write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak since the reset, MiB: the device's on CUDA, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if _STATUS.exists():
        return max(_earlier, _status("VmHWM") / 2**10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def can_measure_growth() -> bool:
    """Return whether `peak_growth` works on this system: Linux alone lets a peak be forgotten."""
    return _STATUS.exists() and _CLEAR.exists()


def peak_growth(work: Callable[[], None]) -> int:
    """Return by how many bytes the process's resident memory rose at most while `work` ran.

    Memory that was freed but kept is handed back first: the work would be given it unnoticed.
    """
    global _earlier
    release_freed_memory()
    _earlier = peak_memory_mb(torch.device("cpu"))
    _CLEAR.write_text("5")
    before = _status("VmHWM")
    work()
    return (_status("VmHWM") - before) * 2**10


def _status(name: str) -> int:
    """Return a line of the process's status, KiB."""
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1])
