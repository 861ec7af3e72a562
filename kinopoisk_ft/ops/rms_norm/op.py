"""Normalize by the root mean square: with PyTorch, or on a CPU with one pass over each row.

On a CPU PyTorch composes this from operators that each read and write the whole tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.backends import NUMBA_ERROR, choose_backend

if NUMBA_ERROR is None:
    from kinopoisk_ft.ops.rms_norm.cpu import FORWARD, normalize

BACKENDS = ("auto", "numba", "torch")


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float | None = None,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich, 2019).

    Args:
        x: (..., width); the mean is over the last dimension.
        weight: (width,); ones if None.
        eps: the machine epsilon of the dtype of x if None, as in PyTorch.
        backend: auto, numba (CPU, float32) or torch (`nn.functional.rms_norm`).
        dtype: dtype of the output, which is rounded once; the dtype of x and weight if None.

    Returns:
        A tensor of the shape of x.

    Raises:
        ValueError: the shapes do not fit.
        UserError: the backend cannot run here.
    """
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(
            f"weight must be of shape {tuple(x.shape[-1:])}, not {tuple(weight.shape)}"
        )
    dtypes = {y.dtype for y in (x, weight) if y is not None}
    chosen = choose_backend("rms_norm", backend, BACKENDS, x.device, x.dtype)
    if chosen == "torch" or dtypes != {torch.float32}:
        out = nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
        return out.to(dtype or out.dtype)
    # The same default as in PyTorch.
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    # The kernels write float32 and bfloat16; other dtypes are cast from float32.
    out_dtype = dtype if dtype in FORWARD else torch.float32
    out = normalize(x, weight, eps, out_dtype)[0]
    return out.to(dtype or out_dtype)
