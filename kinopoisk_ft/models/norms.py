"""Define the RMS norms of Mamba (Zhang & Sennrich, 2019, https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.rms_norm.op import rms_norm


class RMSNorm(nn.RMSNorm):
    """RMS normalization of the last dimension, with this project's operator."""

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Normalize x (..., width); the output has the dtype of x unless `dtype` is given."""
        return rms_norm(x, self.weight, self.eps, dtype=dtype)


class GatedRMSNorm(nn.Module):
    """RMS normalization of y * silu(z), separately in each channel group."""

    def __init__(self, size: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.groups, self.eps = groups, eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate and normalize y (B, L, E) in float32; the gate z has the same shape."""
        gated = (y.float() * nn.functional.silu(z.float())).unflatten(-1, (self.groups, -1))
        return self.weight * rms_norm(gated, eps=self.eps).flatten(-2)
