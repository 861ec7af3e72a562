"""Causal depthwise convolution followed by SiLU: one function, several backends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.backends import NUMBA_ERROR, choose, full_precision
from kinopoisk_ft.ops.lengths import as_int64, real_positions

if NUMBA_ERROR is None:
    from kinopoisk_ft.ops.conv_numba import conv

BACKENDS = ("auto", "numba", "torch")


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
        backend: auto, numba (CPU) or torch (nn.functional.conv1d, the reference).

    Returns:
        (batch, length, d_inner) in the dtype of x. Half precision is computed in float32.

    Raises:
        ValueError: shapes that do not fit. UserError: a backend that cannot run here.
    """
    if x.dim() != 3 or weight.dim() != 2 or x.shape[2] != weight.shape[0] or not x.shape[1]:
        raise ValueError(f"x must be (batch, length, d_inner), weight (d_inner, width): "
                         f"{tuple(x.shape)}, {tuple(weight.shape)}")  # fmt: skip
    dtype = torch.promote_types(torch.float32, torch.promote_types(x.dtype, weight.dtype))
    chosen = choose("causal_conv1d", backend, BACKENDS, x.device, dtype)
    with full_precision(x.device):
        x_full, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        if chosen == "numba":
            out = conv(x_full, weight, bias, as_int64(lengths))
        else:
            out = causal_conv1d_torch(x_full, weight, bias, lengths)
        return out.to(x.dtype)


def causal_conv1d_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
) -> Tensor:
    """The definition, by `F.conv1d`."""
    keep = None if lengths is None else real_positions(lengths, x.shape[1])[..., None]
    if keep is not None:
        x = torch.where(keep, x, 0)
    padded = nn.functional.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    out = nn.functional.silu(
        nn.functional.conv1d(padded, weight[:, None], bias, groups=weight.shape[0])
    ).transpose(1, 2)
    return out if keep is None else torch.where(keep, out, 0)
