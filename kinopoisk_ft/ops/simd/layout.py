"""Prepare the memory layout of tensors for the CPU kernels."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.simd.register import LANES


def pad(x: Tensor, multiple: int) -> Tensor:
    """Pad the last dimension with zeros to a multiple of `multiple`."""
    missing = -x.shape[-1] % multiple
    return nn.functional.pad(x, (0, missing)) if missing else x


def unpad(x: Tensor, width: int) -> Tensor:
    """Truncate the last dimension to `width`. Input and output are contiguous."""
    return x if x.shape[-1] == width else x[..., :width].contiguous()


def align_channels(x: Tensor) -> Tensor:
    """Zero-pad the last dimension of x to a multiple of `LANES`, and give it stride 1.

    x: (batch, length, width).
    """
    x = pad(x, LANES)
    return x if x.stride(2) == 1 else x.contiguous()


def pad_or_fill(x: Tensor | None, width: int, value: float) -> Tensor:
    """Zero-pad x (width,) to a multiple of `LANES`; if x is None, use a tensor filled with `value`.

    PyTorch's default dtype and device have no effect.
    """
    filled = torch.full((width,), value, dtype=torch.float32, device="cpu") if x is None else x
    return pad(filled, LANES).contiguous()


def describe_memory(x: Tensor) -> tuple[int, int, int]:
    """Return the address of x (batch, length, width), and its first two strides in elements."""
    return x.data_ptr(), x.stride(0), x.stride(1)


def sort_by_length(lengths: Tensor | None, x: Tensor) -> tuple[array[int], array[int]]:
    """Compute the order of the rows of x (batch, length, width) by decreasing length.

    Returns:
        Two arrays: the row numbers, with the longest row first, and the length of each row, in the
        original order. Each length is clipped to 0 .. x.shape[1]. If `lengths` is None, all rows
        have length x.shape[1].
    """
    batch, length = x.shape[:2]
    # Use Python integers, because PyTorch's operators would take longer on so few numbers than the
    # scan of a short row.
    numbers = [length] * batch if lengths is None else lengths.tolist()
    # A length out of range would make a kernel write outside its tensors.
    numbers = [min(max(0, number), length) for number in numbers]
    # With the longest rows first, all threads finish at about the same time.
    order = sorted(range(batch), key=numbers.__getitem__, reverse=True)
    return array("q", order), array("q", numbers)
