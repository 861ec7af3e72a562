"""Apply a causal convolution and SiLU with one of several backends."""

from __future__ import annotations

import torch
from torch import Tensor

from kinopoisk_ft.ops.backends import NUMBA_ERROR, choose_backend, disable_autocast
from kinopoisk_ft.ops.conv.cuda import TAPS, causal_conv1d_cuda
from kinopoisk_ft.ops.conv.reference import causal_conv1d_torch
from kinopoisk_ft.ops.shapes import check_shapes, zero_beyond_lengths

if NUMBA_ERROR is None:
    from kinopoisk_ft.ops.conv.cpu import FORWARD, conv

BACKENDS = ("auto", "cuda", "numba", "torch")
# Backends that do not support `lengths`, so that the tensors are masked instead.
_WITHOUT_LENGTHS = {"cuda": causal_conv1d_cuda, "torch": causal_conv1d_torch}


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Apply a causal convolution to each channel separately, then SiLU.

    Args:
        x: (batch, length, d_inner).
        weight: (d_inner, width), where width is the kernel size.
        bias: (d_inner,).
        lengths: (batch,), the number of steps in each row before the padding. At padding, outputs
            and gradients are 0.
        backend: auto (the fastest), cuda (causal-conv1d, kernel sizes 2 to 4), numba (on a CPU) or
            torch (`nn.functional.conv1d`).

    Returns:
        (batch, length, d_inner) in the dtype of x. Half-precision inputs are processed in float32.

    Raises:
        ValueError: the shapes do not match.
        UserError: the backend is unknown or cannot process these tensors.
    """
    if x.dim() != 3 or weight.dim() != 2 or x.shape[2] != weight.shape[0] or 0 in x.shape[1:]:
        raise ValueError(
            "x must be of shape (batch, length, d_inner) and weight (d_inner, width), "
            f"not {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    check_shapes({"bias": (bias, (x.shape[2],)), "lengths": (lengths, (x.shape[0],))})
    # Compute in float32, or in float64 if x or weight is float64.
    dtype = torch.promote_types(torch.float32, torch.promote_types(x.dtype, weight.dtype))
    taps = weight.shape[1]
    unsupported = None if taps in TAPS else f"it supports {TAPS[0]} to {TAPS[-1]} taps, not {taps}"
    chosen = choose_backend(
        "causal_conv1d", backend, BACKENDS, x.device, dtype, unsupported, shape=x.shape
    )
    # With autocast enabled, conv1d would round to half precision.
    with disable_autocast(x.device):
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        if chosen == "numba":
            readable = x if x.dtype in FORWARD else x.to(dtype)
            out: Tensor = conv(readable, weight, bias, lengths)
        else:
            # Zeros beyond the lengths make outputs and gradients zero there.
            (masked,) = zero_beyond_lengths(lengths, x.to(dtype))
            (out,) = zero_beyond_lengths(lengths, _WITHOUT_LENGTHS[chosen](masked, weight, bias))
        return out.to(x.dtype)


def match_conv_backend(scan_backend: str) -> str:
    """Return the convolution backend for a layer with a given scan backend.

    Both backends have the same name, with two exceptions. For `reference`, the convolution uses
    `torch`. For `cuda`, the convolution uses `auto`, because the scan's package (mamba-ssm) can be
    installed without the convolution's package (causal-conv1d).
    """
    return {"cuda": "auto", "reference": "torch"}.get(scan_backend, scan_backend)
