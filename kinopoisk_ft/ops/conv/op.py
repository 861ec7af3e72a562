"""Causal depthwise convolution followed by SiLU: one function, several backends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kinopoisk_ft.ops.backends import NUMBA_ERROR, choose, full_precision
from kinopoisk_ft.ops.conv.cuda import TAPS, causal_conv1d_cuda
from kinopoisk_ft.ops.conv.reference import causal_conv1d_torch
from kinopoisk_ft.ops.lengths import as_int64, real_positions

if NUMBA_ERROR is None:
    from kinopoisk_ft.ops.conv.cpu import FORWARD, conv

BACKENDS = ("auto", "cuda", "numba", "torch")
_PLAIN = {"cuda": causal_conv1d_cuda, "torch": causal_conv1d_torch}


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Convolve each channel with its own past, then apply SiLU.

    Args:
        x: (batch, length, d_inner). weight: (d_inner, width). bias: (d_inner,).
        lengths: (batch,) integers; from there on a row's outputs are 0 and carry no gradient.
        backend: auto, cuda (causal-conv1d; 2 to 4 taps), numba (CPU) or torch
            (nn.functional.conv1d, the reference).

    Returns:
        (batch, length, d_inner) in the dtype of x. Half precision is computed in float32.

    Raises:
        ValueError: shapes that do not fit. UserError: a backend that cannot run here.
    """
    if x.dim() != 3 or weight.dim() != 2 or x.shape[2] != weight.shape[0] or not x.shape[1]:
        raise ValueError(f"x must be (batch, length, d_inner), weight (d_inner, width): "
                         f"{tuple(x.shape)}, {tuple(weight.shape)}")  # fmt: skip
    for name, tensor, size in (("bias", bias, x.shape[2]), ("lengths", lengths, x.shape[0])):
        if tensor is not None and tuple(tensor.shape) != (size,):
            raise ValueError(f"{name} must be of shape {(size,)}, not {tuple(tensor.shape)}")
    dtype = torch.promote_types(torch.float32, torch.promote_types(x.dtype, weight.dtype))
    taps = weight.shape[1]
    unfit = None if taps in TAPS else f"it takes {TAPS[0]} to {TAPS[-1]} taps, not {taps}"
    chosen = choose("causal_conv1d", backend, BACKENDS, x.device, dtype, unfit)
    with full_precision(x.device):
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        if chosen == "numba":
            known = x if x.dtype in FORWARD else x.to(dtype)
            out: Tensor = conv(known, weight, bias, as_int64(lengths))
        else:
            out = _masked(_PLAIN[chosen], x.to(dtype), weight, bias, lengths)
        return out.to(x.dtype)


def beside(scan_backend: str) -> str:
    """Return the backend that goes with one of a scan, whose mixer has a convolution, too.

    With mamba-ssm asked for, causal-conv1d may still be missing; `auto` says what it takes.
    """
    return {"cuda": "auto", "reference": "torch"}.get(scan_backend, scan_backend)


def _masked(
    conv1d: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
) -> Tensor:
    """Put zeros beyond the lengths before and after: nothing flows from or to there."""
    if lengths is None:
        return conv1d(x, weight, bias)
    keep = real_positions(lengths, x.shape[1])[..., None]
    return torch.where(keep, conv1d(torch.where(keep, x, 0), weight, bias), 0)
