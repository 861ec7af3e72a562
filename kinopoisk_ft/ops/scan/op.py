"""Apply the selective scan of Mamba with one of several backends."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from kinopoisk_ft.ops.backends import NUMBA_ERROR, choose_backend, disable_autocast
from kinopoisk_ft.ops.lengths import make_length_mask
from kinopoisk_ft.ops.scan.chunked import selective_scan_torch
from kinopoisk_ft.ops.scan.cuda import selective_scan_cuda
from kinopoisk_ft.ops.scan.reference import selective_scan_reference

if NUMBA_ERROR is None:
    from kinopoisk_ft.ops.scan.cpu import selective_scan_numba

BACKENDS = ("auto", "cuda", "numba", "torch", "reference")
# Backends that do not support `lengths`, so that the tensors are masked instead.
_WITHOUT_LENGTHS: dict[str, Any] = {
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
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute the selective scan of Mamba (Gu & Dao, 2023, https://arxiv.org/abs/2312.00752).

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = C_t h_t + D u_t;  out = y silu(z)

    Args:
        u, delta, z: (batch, length, d_inner). If z is None, out = y.
        A: (d_inner, d_state).
        B, C: (batch, length, d_state).
        D, delta_bias: (d_inner,).
        delta_softplus: whether delta_t is softplus(delta + delta_bias), not delta + delta_bias.
        lengths: (batch,) numbers of real steps. At padding, outputs and gradients are 0.
        backend: auto (the fastest), cuda (mamba-ssm), numba (on a CPU), torch (in chunks) or
            reference (step by step).

    Returns:
        (batch, length, d_inner) in the dtype of u. Half precision is computed in float32.

    Raises:
        ValueError: the shapes do not match.
        UserError: the backend is unknown or cannot process these tensors.
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias, lengths)
    tensors: list[Any] = [u, delta, A, B, C, D, z, delta_bias]
    dtypes = {x.dtype for x in tensors if x is not None}
    # Compute in float32, or in float64 if an input is float64.
    dtype = reduce(torch.promote_types, dtypes, torch.float32)
    chosen = choose_backend("selective_scan", backend, BACKENDS, u.device, dtype)
    # With autocast enabled, the matrix products of the chunked scan would round to half precision.
    with disable_autocast(u.device):
        if chosen == "numba":
            out = selective_scan_numba(tensors, delta_softplus, lengths)
        else:
            tensors = [None if x is None else x.to(dtype) for x in tensors]
            tensors = _mask_beyond_lengths(tensors, lengths)
            out = _WITHOUT_LENGTHS[chosen](*tensors, delta_softplus)
        return out.to(u.dtype)


def _mask_beyond_lengths(tensors: list[Any], lengths: Tensor | None) -> list[Any]:
    if lengths is None:
        return tensors
    u, delta, A, B, C, D, z, delta_bias = tensors
    # (batch, length, 1)
    mask = make_length_mask(lengths, u.shape[1])[..., None]
    # Zeros beyond the lengths make outputs and gradients zero there.
    u, delta, B, C, z = (
        None if x is None else torch.where(mask, x, 0) for x in (u, delta, B, C, z)
    )
    return [u, delta, A, B, C, D, z, delta_bias]


def _check_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, lengths: Tensor | None,
) -> None:  # fmt: skip
    if u.dim() != 3 or A.dim() != 2 or not u.shape[1]:
        raise ValueError(
            "u must be of shape (batch, length, d_inner) and A (d_inner, d_state), "
            f"not {tuple(u.shape)} and {tuple(A.shape)}"
        )
    batch, length, d_inner = u.shape
    expected = {
        "delta": (delta, (batch, length, d_inner)),
        "A": (A, (d_inner, A.shape[1])),
        "B": (B, (batch, length, A.shape[1])),
        "C": (C, (batch, length, A.shape[1])),
        "D": (D, (d_inner,)),
        "z": (z, (batch, length, d_inner)),
        "delta_bias": (delta_bias, (d_inner,)),
        "lengths": (lengths, (batch,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be of shape {shape}, not {tuple(tensor.shape)}")
