"""Define the device of tests marked `gpu`: a GPU, or a CPU in `make gpu-check DEVICE=cpu`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kinopoisk_ft.ops import backends
from kinopoisk_ft.ops.gpu_package import GpuPackage

GPU = os.environ.get("GPU_CHECK_DEVICE", "cuda")
MARKS = (
    pytest.mark.gpu,
    pytest.mark.skipif(
        GPU == "cuda" and not torch.cuda.is_available(), reason="this machine has no CUDA GPU"
    ),
)
# A value of the parameter `device`.
ON_GPU = pytest.param(GPU, id="gpu", marks=MARKS)


def on_gpu(*values: Any) -> Any:
    """Return values of several parameters, the last of which is the device."""
    return pytest.param(*values, GPU, id="-".join(["gpu", *map(str, values)]), marks=MARKS)


def require_package(
    package: GpuPackage,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    stand_in: Callable[[pytest.MonkeyPatch], None],
) -> None:
    """Skip the test if the package is not installed; on a CPU, use a stand-in instead."""
    if device == "cpu":
        stand_in(monkeypatch)
        monkeypatch.setattr(backends, "_find_cuda_problem", lambda *_: None)
    elif not package.is_installed():
        pytest.skip(f"{package.name} is not installed")
