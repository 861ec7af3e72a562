"""Apply the scan of Mamba-2 (state space duality, SSD) with one of several backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.backends import choose_backend, disable_autocast
from kinopoisk_ft.ops.shapes import check_shapes, zero_beyond_lengths
from kinopoisk_ft.ops.ssd.chunked import ssd_torch
from kinopoisk_ft.ops.ssd.cuda import ssd_cuda
from kinopoisk_ft.ops.ssd.reference import ssd_reference

BACKENDS = ("auto", "cuda", "torch", "reference")
_SCANS: dict[str, Any] = {"cuda": ssd_cuda, "torch": ssd_torch, "reference": ssd_reference}


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Compute the scan of Mamba-2 (Dao & Gu, 2024, https://arxiv.org/abs/2405.21060).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T;  y_t = h_t C_t + D x_t

    Args:
        x: (batch, length, heads, head_dim).
        dt: (batch, length, heads).
        A, D, dt_bias: (heads,).
        B, C: (batch, length, groups, d_state).
        dt_softplus: if true, dt_t is softplus(dt + dt_bias); otherwise, it is dt + dt_bias.
        dt_limit: lower and upper limit of dt_t, applied after the softplus.
        lengths: (batch,), the number of steps in each row before the padding. At padding, outputs
            and gradients are 0.
        backend: auto (the fastest), cuda (mamba-ssm), torch (matrix products of chunks) or
            reference (step by step).

    Returns:
        (batch, length, heads, head_dim) in the dtype of x. Half-precision inputs are processed in
        float32.

    Raises:
        ValueError: the shapes do not match.
        UserError: the backend is unknown or cannot process these tensors.
    """
    _check_shapes(x, dt, A, B, C, D, dt_bias, lengths)
    # Compute in float32, or in float64 if an input is float64.
    dtype = torch.float32
    for tensor in (x, dt, A, B, C):
        dtype = torch.promote_types(dtype, tensor.dtype)
    chosen = choose_backend("ssd", backend, BACKENDS, x.device, dtype, shape=x.shape)
    # With autocast enabled, the matrix products would round to half precision.
    with disable_autocast(x.device):
        values, dt, A, B, C = (tensor.to(dtype) for tensor in (x, dt, A, B, C))
        dt = _compute_steps(dt, dt_bias, dt_softplus, dt_limit)
        # Zeros beyond the lengths make outputs and gradients zero there.
        values, dt, B, C = zero_beyond_lengths(lengths, values, dt, B, C)
        y = _SCANS[chosen](values, dt, A, B, C)
        if D is not None:
            y = y + D[:, None] * values
        out: Tensor = y.to(x.dtype)
        return out


def _compute_steps(
    dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dt_limit: tuple[float, float]
) -> Tensor:
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = nn.functional.softplus(dt)
    # The config of a Mamba-2 model sets the limits. The default limits have no effect.
    return dt if dt_limit == (0.0, float("inf")) else dt.clamp(*dt_limit)


def _check_shapes(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, dt_bias: Tensor | None, lengths: Tensor | None,
) -> None:  # fmt: skip
    if x.dim() != 4 or B.dim() != 4 or 0 in (*x.shape[1:], B.shape[2]):
        raise ValueError(
            "x must be of shape (batch, length, heads, head_dim) and B (batch, length, groups, "
            f"d_state), not {tuple(x.shape)} and {tuple(B.shape)}"
        )
    batch, length, heads, _ = x.shape
    if heads % B.shape[2]:
        raise ValueError(f"{heads} heads cannot be divided into {B.shape[2]} equal groups")
    check_shapes(
        {
            "dt": (dt, (batch, length, heads)),
            "A": (A, (heads,)),
            "B": (B, (batch, length, *B.shape[2:])),
            "C": (C, tuple(B.shape)),
            "D": (D, (heads,)),
            "dt_bias": (dt_bias, (heads,)),
            "lengths": (lengths, (batch,)),
        }
    )
