"""Make masks for padded batches."""

from __future__ import annotations

import torch
from torch import Tensor


def make_length_mask(lengths: Tensor, length: int) -> Tensor:
    """Return a mask (batch, length) that is true at real steps and false at padding.

    lengths: (batch,) integers, the number of real steps in each row.
    """
    # (length,) < (batch, 1) is broadcast to (batch, length).
    return torch.arange(length, device=lengths.device) < lengths[:, None]
