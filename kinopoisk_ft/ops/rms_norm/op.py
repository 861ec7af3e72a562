"""Root mean square normalisation: PyTorch's own, or on a CPU one pass over each row.

PyTorch composes it there from operators that each read and write the whole tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.backends import NUMBA_ERROR, choose

if NUMBA_ERROR is None:
    from kinopoisk_ft.ops.rms_norm.cpu import FORWARD, normalise

BACKENDS = ("auto", "numba", "torch")


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    eps: float | None = None,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich, 2019).

    Args:
        x: (..., width); the mean is over the last dimension. weight: (width,), one if None.
        eps: the step from one to the next number of the dtype if None, as in PyTorch.
        backend: auto, numba (CPU, float32) or torch (`nn.functional.rms_norm`).
        dtype: of the output, which is rounded once; that of x and weight if None.

    Returns:
        A tensor of the shape of x.

    Raises:
        ValueError: shapes that do not fit. UserError: a backend that cannot run here.
    """
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(f"weight must be of shape {tuple(x.shape[-1:])}: {tuple(weight.shape)}")
    dtypes = {y.dtype for y in (x, weight) if y is not None}
    chosen = choose("rms_norm", backend, BACKENDS, x.device, x.dtype)
    if chosen == "torch" or dtypes != {torch.float32}:
        plain = nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
        return plain.to(dtype or plain.dtype)
    known = dtype if dtype in FORWARD else torch.float32
    out: Tensor = normalise(x, weight, torch.finfo(x.dtype).eps if eps is None else eps, known)[0]
    return out.to(dtype or known)
