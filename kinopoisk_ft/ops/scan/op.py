"""The selective scan of Mamba: one function, several backends."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from kinopoisk_ft.ops.backends import NUMBA_ERROR, choose, full_precision
from kinopoisk_ft.ops.lengths import as_int64, real_positions
from kinopoisk_ft.ops.scan.chunked import selective_scan_torch
from kinopoisk_ft.ops.scan.cuda import selective_scan_cuda
from kinopoisk_ft.ops.scan.reference import selective_scan_reference

if NUMBA_ERROR is None:
    from kinopoisk_ft.ops.scan.cpu import selective_scan_numba

BACKENDS = ("auto", "cuda", "numba", "torch", "reference")
_PLAIN: dict[str, Any] = {
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
    """Selective scan of Mamba (Gu & Dao, 2023, https://arxiv.org/abs/2312.00752).

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = C_t h_t + D u_t;  out = y silu(z)

    Args:
        u, delta, z: (batch, length, d_inner); without z there is no gate.
        A: (d_inner, d_state). B, C: (batch, length, d_state). D, delta_bias: (d_inner,).
        delta_softplus: the step is softplus(delta + delta_bias).
        lengths: (batch,) integers; from there on a row's outputs are 0 and carry no gradient.
        backend: auto, cuda (mamba-ssm), numba (CPU), torch (chunked) or reference (the definition).

    Returns:
        (batch, length, d_inner) in the dtype of u. Half precision is computed in float32.

    Raises:
        ValueError: shapes that do not fit. UserError: a backend that cannot run here.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, lengths)
    given = [x for x in (u, delta, A, B, C, D, z, delta_bias) if x is not None]
    dtype = reduce(torch.promote_types, {x.dtype for x in given}, torch.float32)
    chosen = choose("selective_scan", backend, BACKENDS, u.device, dtype)
    with full_precision(u.device):
        tensors: list[Any] = [u, delta, A, B, C, D, z, delta_bias]
        if chosen == "numba":
            out = selective_scan_numba(tensors, delta_softplus, as_int64(lengths))
        else:
            tensors = [None if x is None else x.to(dtype) for x in tensors]
            out = _PLAIN[chosen](*_masked(tensors, lengths), delta_softplus)
        return out.to(u.dtype)


def _masked(tensors: list[Any], lengths: Tensor | None) -> list[Any]:
    """Put zeros into u, delta, B, C and z beyond the lengths: nothing flows from or to there."""
    if lengths is None:
        return tensors
    u, delta, A, B, C, D, z, delta_bias = tensors
    keep = real_positions(lengths, u.shape[1])[..., None]
    u, delta, B, C, z = (
        None if x is None else torch.where(keep, x, 0) for x in (u, delta, B, C, z)
    )
    return [u, delta, A, B, C, D, z, delta_bias]


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, lengths: Tensor | None,
) -> None:  # fmt: skip
    if u.dim() != 3 or A.dim() != 2 or not u.shape[1]:
        raise ValueError(
            f"u must be (batch, length, d_inner), A (d_inner, d_state): {u.shape}, {A.shape}"
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
