"""Apply root mean square normalization with PyTorch or with a CPU kernel.

On a CPU, PyTorch uses several operators, each of which reads and writes the whole tensor. The
kernel does the whole computation for one row at a time, while the row is in cache.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.backends import NUMBA_ERROR, choose_backend
from kinopoisk_ft.ops.shapes import check_shapes

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
        x: (..., width). The mean is taken over the last dimension.
        weight: (width,); ones if None.
        eps: if None, the machine epsilon of the dtype of x, as in PyTorch.
        backend: auto (the fastest), numba (float32 on a CPU) or torch (`nn.functional.rms_norm`).
        dtype: dtype of the output; if None, the dtype of x.

    Returns:
        A tensor with the shape of x.

    Raises:
        ValueError: the shapes of x and weight do not match.
        UserError: the backend is unknown or cannot process these tensors.
    """
    check_shapes({"weight": (weight, (x.shape[-1],))})
    dtypes = {y.dtype for y in (x, weight) if y is not None}
    chosen = choose_backend("rms_norm", backend, BACKENDS, x.device, x.dtype, shape=x.shape)
    if chosen == "torch" or dtypes != {torch.float32}:
        out = nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
        return out.to(dtype or out.dtype)
    # This is the default of PyTorch.
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    # The kernels can write float32 and bfloat16. Other dtypes are converted from float32.
    out_dtype = dtype if dtype in FORWARD else torch.float32
    out = normalize(x, weight, eps, out_dtype)[0]
    return out.to(dtype or out_dtype)
