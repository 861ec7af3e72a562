"""Handle rows of different lengths in one padded batch."""

from __future__ import annotations

import torch
from torch import Tensor


def make_length_mask(lengths: Tensor, length: int) -> Tensor:
    """Return a boolean mask (batch, length) that is true in the first lengths[i] steps of row i.

    lengths: (batch,) integers.
    """
    # (length,) < (batch, 1) is broadcast to (batch, length).
    return torch.arange(length, device=lengths.device) < lengths[:, None]
