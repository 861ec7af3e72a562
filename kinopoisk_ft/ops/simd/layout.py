"""Lay out tensors for the CPU kernels: whole vectors of contiguous channels."""

from __future__ import annotations

from array import array
from functools import lru_cache

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.simd.register import LANES


def pad(x: Tensor, multiple: int) -> Tensor:
    """Pad the last dimension with zeros to a multiple of `multiple`."""
    missing = -x.shape[-1] % multiple
    return nn.functional.pad(x, (0, missing)) if missing else x


def unpad(x: Tensor, width: int) -> Tensor:
    """Cut the last dimension to `width`; returns a contiguous tensor."""
    return x if x.shape[-1] == width else x[..., :width].contiguous()


def align_channels(x: Tensor) -> Tensor:
    """Pad x (batch, length, width) to whole vectors and make its channels contiguous."""
    x = pad(x, LANES)
    return x if x.stride(2) == 1 else x.contiguous()


def pad_or_fill(x: Tensor | None, width: int, value: float) -> Tensor:
    """Pad a parameter (width,) to whole vectors; if it is None, make one filled with `value`.

    The result is read-only.
    """
    return _fill(width, value) if x is None else pad(x, LANES).contiguous()


@lru_cache(maxsize=64)
def _fill(width: int, value: float) -> Tensor:
    # All calls share the tensor, so it must not depend on the defaults at the first call.
    return pad(torch.full((width,), value, dtype=torch.float32, device="cpu"), LANES)


def describe_memory(x: Tensor) -> tuple[int, int, int]:
    """Get the address of x (batch, length, width) and its strides over batch and length."""
    return x.data_ptr(), x.stride(0), x.stride(1)


def sort_by_length(lengths: Tensor | None, x: Tensor) -> tuple[array[int], array[int]]:
    """Sort the rows of x by decreasing length.

    Returns:
        The row numbers in that order, and the length of each row, limited to 0 .. x.shape[1].
    """
    batch, length = x.shape[:2]
    # Python integers: on so few numbers PyTorch's operators take longer than a short row's scan.
    numbers = [length] * batch if lengths is None else lengths.tolist()
    # Lengths out of range would make a kernel write outside of its tensors.
    numbers = [min(max(0, number), length) for number in numbers]
    # With the longest rows first, all threads finish at about the same time.
    order = sorted(range(batch), key=numbers.__getitem__, reverse=True)
    return array("q", order), array("q", numbers)
