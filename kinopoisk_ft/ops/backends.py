"""Choose the backend (the implementation) of an operator."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from kinopoisk_ft.errors import UserError, check_name
from kinopoisk_ft.ops import gpu_package
from kinopoisk_ft.ops.conv import cuda as conv_cuda
from kinopoisk_ft.ops.scan import cuda as scan_cuda
from kinopoisk_ft.ops.ssd import cuda as ssd_cuda

log = logging.getLogger(__name__)

WHERE = "the backend argument, which a run sets with model.scan_backend"

try:
    import numba  # noqa: F401

    NUMBA_ERROR = None
except ImportError as error:
    # The other backends work without numba.
    NUMBA_ERROR = str(error)
NUMBA_FIX = "pip install 'numba>=0.61'"
# The GPU package of each operator that has one.
GPU_PACKAGES = {
    "selective_scan": scan_cuda.PACKAGE,
    "ssd": ssd_cuda.PACKAGE,
    "causal_conv1d": conv_cuda.PACKAGE,
}


def choose_backend(
    operator: str,
    backend: str,
    valid: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    unsupported: str | None = None,
    shape: Sequence[int] = (1,),
) -> str:
    """Choose the backend to run, and log each choice once.

    Args:
        operator: name of the operator.
        backend: name of a backend, or `auto` for the fastest one that works. While torch.export
            traces a model, `auto` selects `torch`, because other programs that load the exported
            model do not have this project's kernels.
        valid: names of the operator's backends; the last one is in plain PyTorch, step by step if
            there are two.
        device, dtype: device and dtype of the tensors.
        unsupported: reason why the GPU package cannot process the shapes; None for supported
            shapes.
        shape: shape of the output. If it has no elements, because the batch is empty, the last
            backend is chosen: kernels expect at least one element.

    Raises:
        UserError: the backend is unknown or cannot process these tensors.
    """
    check_name(backend, valid, f"the backend of {operator}")
    if backend == "auto":
        fastest = "cuda" if device.type == "cuda" else "numba"
        works = (
            fastest in valid
            and not torch.compiler.is_exporting()
            and not _find_problem(operator, fastest, device, dtype, unsupported)
        )
        chosen = fastest if works else "torch"
    else:
        chosen = backend
        if problem := _find_problem(operator, backend, device, dtype, unsupported):
            raise UserError(
                f"backend '{backend}' cannot be used for the operator {operator}: {problem}",
                where=WHERE,
                fix=_suggest_fix(operator, backend),
            )
    if 0 in shape:
        return valid[-1]
    # Logging would cause a graph break in torch.compile.
    if not torch.compiler.is_compiling():
        _log_once(operator, chosen, device.type)
    return chosen


def disable_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Disable autocast in a `with` block, because operators choose their own precision."""
    # Autocast does not support the meta device.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def get_matmul_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a matrix product of x under the current autocast setting."""
    device = x.device.type
    # Autocast does not support the meta device, and does not convert float64.
    if device == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def _find_problem(
    operator: str, backend: str, device: torch.device, dtype: torch.dtype, unsupported: str | None
) -> str | None:
    if backend == "numba":
        return _find_numba_problem(device, dtype)
    if backend == "cuda":
        return _find_cuda_problem(operator, device, dtype, unsupported)
    return None


def _find_numba_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    if NUMBA_ERROR:
        return NUMBA_ERROR
    # For meta tensors, the operators only compute the shapes of their outputs.
    if device.type not in ("cpu", "meta"):
        return f"it runs on a CPU, but the tensors are on {device}"
    return "it computes in float32, but the tensors are float64" if dtype == torch.float64 else None


# torch.compile cannot trace the self-test. With this decorator, it calls the function once and uses
# the result as a constant, which is correct because the result never changes within a process.
@torch.compiler.assume_constant_result
def _find_cuda_problem(
    operator: str, device: torch.device, dtype: torch.dtype, unsupported: str | None
) -> str | None:
    if device.type != "cuda":
        return f"it runs on a GPU, but the tensors are on {device}"
    if dtype == torch.float64:
        return "it computes in float32, but the tensors are float64"
    # The self-test does not run if the package does not support the shapes anyway.
    return unsupported or gpu_package.find_problem(GPU_PACKAGES[operator], device)


def _suggest_fix(operator: str, backend: str) -> str:
    if backend == "numba":
        return NUMBA_FIX if NUMBA_ERROR else "set the backend to 'auto' or 'torch'"
    command = GPU_PACKAGES[operator].get_install_command()
    return f"run {command} on a machine with an NVIDIA GPU, or set the backend to 'auto'"


# The cache makes repeated calls with the same arguments do nothing.
@cache
def _log_once(operator: str, backend: str, device: str) -> None:
    log.debug("%s uses backend '%s' on %s", operator, backend, device)
