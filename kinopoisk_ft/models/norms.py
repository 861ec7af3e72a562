"""RMS normalization for Mamba (Zhang & Sennrich, 2019, https://arxiv.org/abs/1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.rms_norm.op import rms_norm


class RMSNorm(nn.RMSNorm):
    """Normalize the last dimension with this project's operator instead of PyTorch's."""

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Normalize x (..., width); the result has the dtype `dtype`, or the dtype of x if None."""
        return rms_norm(x, self.weight, self.eps, dtype=dtype)


class GatedRMSNorm(nn.Module):
    """Normalize y * silu(z) within each of `groups` equal parts of the last dimension."""

    def __init__(self, size: int, groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.groups, self.eps = groups, eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Map y and the gate z, both (B, L, E), to (B, L, E) in float32."""
        gated = (y.float() * nn.functional.silu(z.float())).unflatten(-1, (self.groups, -1))
        return self.weight * rms_norm(gated, eps=self.eps).flatten(-2)
