"""Check the shapes of an operator's inputs, and mask the padding of batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_shapes(expected: Mapping[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    """Raise ValueError if a tensor does not have the expected shape.

    expected: {argument name: (tensor, expected shape)}. A tensor that is None is not checked.
    """
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be of shape {shape}, not {tuple(tensor.shape)}")


def make_length_mask(lengths: Tensor, length: int) -> Tensor:
    """Return a mask (batch, length) that is true at real steps and false at padding.

    lengths: (batch,) integers, the number of real steps in each row.
    """
    # (length,) < (batch, 1) is broadcast to (batch, length).
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def zero_beyond_lengths(lengths: Tensor | None, *tensors: Tensor | None) -> list[Any]:
    """Return the tensors (batch, length, ...) with zeros at padding.

    If `lengths` is None, there is no padding. A tensor that is None stays None.
    """
    if lengths is None:
        return list(tensors)
    masked: list[Any] = []
    for x in tensors:
        if x is not None:
            # (batch, length, 1, ...)
            mask = make_length_mask(lengths, x.shape[1])[(..., *[None] * (x.dim() - 2))]
            # A product with the mask would keep NaN at padding.
            x = torch.where(mask, x, 0)
        masked.append(x)
    return masked
