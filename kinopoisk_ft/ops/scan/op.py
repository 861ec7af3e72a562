"""Apply the selective scan of Mamba with one of several backends."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from kinopoisk_ft.ops.backends import NUMBA_ERROR, choose_backend, disable_autocast
from kinopoisk_ft.ops.scan.chunked import selective_scan_torch
from kinopoisk_ft.ops.scan.cuda import selective_scan_cuda
from kinopoisk_ft.ops.scan.reference import selective_scan_reference
from kinopoisk_ft.ops.shapes import check_shapes, zero_beyond_lengths

if NUMBA_ERROR is None:
    from kinopoisk_ft.ops.scan.cpu import selective_scan_numba

BACKENDS = ("auto", "cuda", "numba", "torch", "reference")
# Backends that do not support `lengths`, so that the tensors are masked instead.
_WITHOUT_LENGTHS = {
    "cuda": selective_scan_cuda,
    "torch": selective_scan_torch,
    "reference": selective_scan_reference,
}


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute the selective scan of Mamba (Gu & Dao, 2023, https://arxiv.org/abs/2312.00752).

    dt = softplus(delta);  h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t;  y_t = C_t h_t + D u_t;
    out = y silu(z)

    Args:
        u, delta, z: (batch, length, d_inner).
        A: (d_inner, d_state).
        B, C: (batch, length, d_state).
        D: (d_inner,).
        lengths: (batch,), the number of steps in each row before the padding. At padding, outputs
            and gradients are 0.
        backend: auto (the fastest), cuda (mamba-ssm), numba (on a CPU), torch (in chunks) or
            reference (step by step).

    Returns:
        (batch, length, d_inner) in the dtype of u. Half-precision inputs are processed in float32.

    Raises:
        ValueError: the shapes do not match.
        UserError: the backend is unknown or cannot process these tensors.
    """
    _check_shapes(u, delta, A, B, C, D, z, lengths)
    tensors = (u, delta, A, B, C, D, z)
    # Compute in float32, or in float64 if an input is float64.
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)
    chosen = choose_backend("selective_scan", backend, BACKENDS, u.device, dtype, shape=u.shape)
    # With autocast enabled, the matrix products of the chunked scan would round to half precision.
    with disable_autocast(u.device):
        if chosen == "numba":
            out = selective_scan_numba(*tensors, lengths)
        else:
            values, delta, A, B, C, D, z = (x.to(dtype) for x in tensors)
            # Zeros beyond the lengths make outputs and gradients zero there.
            values, delta, B, C, z = zero_beyond_lengths(lengths, values, delta, B, C, z)
            out = _WITHOUT_LENGTHS[chosen](values, delta, A, B, C, D, z)
        return out.to(u.dtype)


def _check_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
    lengths: Tensor | None,
) -> None:  # fmt: skip
    if u.dim() != 3 or A.dim() != 2 or 0 in u.shape[1:]:
        raise ValueError(
            "u must be of shape (batch, length, d_inner) and A (d_inner, d_state), "
            f"not {tuple(u.shape)} and {tuple(A.shape)}"
        )
    batch, length, d_inner = u.shape
    check_shapes(
        {
            "delta": (delta, (batch, length, d_inner)),
            "A": (A, (d_inner, A.shape[1])),
            "B": (B, (batch, length, A.shape[1])),
            "C": (C, (batch, length, A.shape[1])),
            "D": (D, (d_inner,)),
            "z": (z, (batch, length, d_inner)),
            "lengths": (lengths, (batch,)),
        }
    )
