"""The scan of Mamba-2 (state space duality): one function, several backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.backends import choose, full_precision
from kinopoisk_ft.ops.lengths import real_positions
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
    """Scan of Mamba-2 (Dao & Gu, 2024, https://arxiv.org/abs/2405.21060).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T;  y_t = h_t C_t + D x_t

    Args:
        x: (batch, length, heads, head_dim). dt: (batch, length, heads).
        A, D, dt_bias: (heads,). B, C: (batch, length, groups, d_state).
        dt_softplus: the step is softplus(dt + dt_bias), then held within dt_limit.
        lengths: (batch,) integers; from there on a row's outputs are 0 and carry no gradient.
        backend: auto, cuda (mamba-ssm), torch (matrix products by chunks) or reference.

    Returns:
        (batch, length, heads, head_dim) in the dtype of x. Half precision is computed in float32.

    Raises:
        ValueError: shapes that do not fit. UserError: a backend that cannot run here.
    """
    _check(x, dt, A, B, C, D, dt_bias, lengths)
    dtype = torch.float32
    for given in (x, dt, A, B, C):
        dtype = torch.promote_types(dtype, given.dtype)
    chosen = choose("ssd", backend, BACKENDS, x.device, dtype)
    with full_precision(x.device):
        values, dt, A, B, C = (part.to(dtype) for part in (x, dt, A, B, C))
        if dt_bias is not None:
            dt = dt + dt_bias
        if dt_softplus:
            dt = nn.functional.softplus(dt)
        if dt_limit != (0.0, float("inf")):
            dt = dt.clamp(*dt_limit)
        keep = None if lengths is None else real_positions(lengths, x.shape[1])
        if keep is not None:
            dt = torch.where(keep[..., None], dt, 0)
            values, B, C = (torch.where(keep[..., None, None], part, 0) for part in (values, B, C))
        y = _SCANS[chosen](values, dt, A, B, C)
        if D is not None:
            y = y + D[:, None] * values
        return y.to(x.dtype)


def _check(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, dt_bias: Tensor | None, lengths: Tensor | None,
) -> None:  # fmt: skip
    if x.dim() != 4 or B.dim() != 4 or not x.shape[1]:
        raise ValueError(
            f"x must be (batch, length, heads, head_dim), B (batch, length, groups, d_state): "
            f"{tuple(x.shape)}, {tuple(B.shape)}"
        )
    batch, length, heads, _ = x.shape
    if heads % B.shape[2]:
        raise ValueError(f"{heads} heads cannot be dealt to {B.shape[2]} groups")
    expected = {
        "dt": (dt, (batch, length, heads)),
        "A": (A, (heads,)),
        "B": (B, (batch, length, *B.shape[2:])),
        "C": (C, tuple(B.shape)),
        "D": (D, (heads,)),
        "dt_bias": (dt_bias, (heads,)),
        "lengths": (lengths, (batch,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be of shape {shape}, not {tuple(tensor.shape)}")
