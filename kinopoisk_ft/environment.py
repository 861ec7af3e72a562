"""What a result depends on beyond its config: versions, hardware and the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = (
    "kinopoisk-ft", "torch", "transformers", "peft", "datasets", "tokenizers", "torchmetrics",
    "mlflow", "hydra-core", "numba", "numpy", "scikit-learn",
)  # fmt: skip


def commit() -> str:
    """Return the commit of the checkout that the package runs from, `-dirty` if it was changed."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            [
                "git",
                "-C",
                str(here),
                "describe",
                "--always",
                "--dirty",
                "--abbrev=12",
                "--exclude=*",
            ],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return versions, hardware and commit as plain values for a JSON file."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "commit": commit(),
        "packages": versions(),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of the packages that results depend on, None of one not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def processor() -> str:
    """Return the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
