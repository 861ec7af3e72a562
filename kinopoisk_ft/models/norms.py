"""Normalisation by the root mean square: before each block of a Mamba, and within Mamba-2's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.rms_norm.op import rms_norm


class RMSNorm(nn.RMSNorm):
    """PyTorch's layer over the last dimension, by this project's operator."""

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Map x (..., width) to the same shape, in `dtype` if it is given."""
        return rms_norm(x, self.weight, self.eps, dtype=dtype)


class GatedRMSNorm(nn.Module):
    """y silu(z), normalised within each of `groups` equal parts."""

    def __init__(self, size: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.groups, self.eps = groups, eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Map y and the gate z, (B, L, E) each, to (B, L, E) in float32."""
        gated = (y.float() * nn.functional.silu(z.float())).unflatten(-1, (self.groups, -1))
        return self.weight * rms_norm(gated, eps=self.eps).flatten(-2)
