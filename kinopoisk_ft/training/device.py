"""Which device trains, and how much memory it took."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from kinopoisk_ft.errors import UserError

_STATUS = Path("/proc/self/status")


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
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak since the reset, MiB: the device's on CUDA, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if _STATUS.exists():
        line = next(x for x in _STATUS.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
