"""Handle rows of unequal length in one padded batch."""

from __future__ import annotations

import torch
from torch import Tensor


def make_length_mask(lengths: Tensor, length: int) -> Tensor:
    """Make a boolean mask (batch, length), true before each row's length.

    lengths: (batch,) integers.
    """
    # (length,) < (batch, 1)
    return torch.arange(length, device=lengths.device) < lengths[:, None]
