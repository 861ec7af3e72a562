"""Rows of unequal length in one padded batch."""

from __future__ import annotations

import torch
from torch import Tensor


def real_positions(lengths: Tensor, length: int) -> Tensor:
    """Return a boolean (batch, length), true before each row's length."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def as_int64(lengths: Tensor | None) -> Tensor | None:
    """Return lengths as the CPU kernels read them."""
    return None if lengths is None else lengths.to(torch.int64)
