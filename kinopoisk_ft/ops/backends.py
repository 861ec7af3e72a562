"""Which implementation of an operator runs: asked for by name, or the fastest that works here."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from kinopoisk_ft.errors import UserError, nearest
from kinopoisk_ft.ops import gpu_package
from kinopoisk_ft.ops.conv import cuda as conv_cuda
from kinopoisk_ft.ops.scan import cuda as scan_cuda
from kinopoisk_ft.ops.ssd import cuda as ssd_cuda

log = logging.getLogger(__name__)

try:
    import numba  # noqa: F401

    NUMBA_ERROR = None
except ImportError as error:
    NUMBA_ERROR = str(error)
NUMBA_FIX = "pip install 'numba>=0.61'"
GPU_PACKAGES = {
    "selective_scan": scan_cuda.PACKAGE,
    "ssd": ssd_cuda.PACKAGE,
    "causal_conv1d": conv_cuda.PACKAGE,
}
_announced: set[tuple[str, str, str]] = set()


def check(operator: str, backend: str, valid: tuple[str, ...]) -> str:
    """Return `backend` if it is a name that the operator knows.

    Raises:
        UserError: it is not.
    """
    if backend not in valid:
        raise UserError(f"unknown backend '{backend}' of {operator}", fix=nearest(backend, valid))
    return backend


def choose(
    operator: str,
    backend: str,
    valid: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    unfit: str | None = None,
) -> str:
    """Return the backend to run; `auto` picks the fastest that works and logs it once.

    Args:
        unfit: why the GPU package cannot take tensors of these sizes, on whatever device.

    Raises:
        UserError: an unknown backend, or one asked for by name that cannot serve these tensors.
    """
    if check(operator, backend, valid) == "auto":
        chosen = _fastest(operator, valid, device, dtype, unfit)
    else:
        chosen = backend
        _require(operator, backend, device, dtype, unfit)
    if not torch.compiler.is_compiling():
        _announce(operator, chosen, device)
    return chosen


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Switch autocast off, if it is on: the operators choose their own precision."""
    meta = device.type == "meta"  # where autocast does not exist
    if meta or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a matrix product reads x here: autocast's, or its own."""
    kind = x.device.type
    if kind == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def _fastest(
    operator: str,
    valid: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    unfit: str | None,
) -> str:
    if device.type == "cuda":
        works = "cuda" in valid and not _cuda_trouble(operator, device, dtype, unfit)
        return "cuda" if works else "torch"
    return "numba" if "numba" in valid and not _numba_trouble(device, dtype) else "torch"


def _require(
    operator: str, backend: str, device: torch.device, dtype: torch.dtype, unfit: str | None
) -> None:
    trouble, fix = None, None
    if backend == "numba":
        trouble = _numba_trouble(device, dtype)
        fix = NUMBA_FIX if NUMBA_ERROR else "ask for backend 'auto' or 'torch'"
    elif backend == "cuda":
        trouble = _cuda_trouble(operator, device, dtype, unfit)
        fix = f"{GPU_PACKAGES[operator].fix()} on a machine with a GPU, or ask for backend 'auto'"
    if trouble:
        raise UserError(f"{operator}: backend '{backend}' cannot run here: {trouble}", fix=fix)


def _numba_trouble(device: torch.device, dtype: torch.dtype) -> str | None:
    if NUMBA_ERROR:
        return NUMBA_ERROR
    if device.type not in ("cpu", "meta"):
        return f"it runs on a CPU, and the tensors are on {device}"
    return "it computes in float32, and the tensors are float64" if dtype == torch.float64 else None


@torch.compiler.assume_constant_result
def _cuda_trouble(
    operator: str, device: torch.device, dtype: torch.dtype, unfit: str | None
) -> str | None:
    if device.type != "cuda":
        return f"it runs on a GPU, and the tensors are on {device}"
    if dtype == torch.float64:
        return "it computes in float32, and the tensors are float64"
    return unfit or gpu_package.trouble(GPU_PACKAGES[operator], device)


def _announce(operator: str, backend: str, device: torch.device) -> None:
    key = (operator, backend, device.type)
    if key not in _announced:
        _announced.add(key)
        log.info("%s runs by backend '%s' on %s", operator, backend, device.type)
