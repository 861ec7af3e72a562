"""How tensors are laid out for the CPU kernels: whole registers, unit stride over channels."""

from __future__ import annotations

from array import array
from functools import lru_cache

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.simd.register import LANES


def pad(x: Tensor, multiple: int) -> Tensor:
    """Pad the last dimension with zeros to a multiple."""
    missing = -x.shape[-1] % multiple
    return nn.functional.pad(x, (0, missing)) if missing else x


def rows(x: Tensor) -> Tensor:
    """Return x (batch, length, width) in whole registers of contiguous channels."""
    x = pad(x, LANES)
    return x if x.stride(2) == 1 else x.contiguous()


def cut(x: Tensor, width: int) -> Tensor:
    """Undo `pad`; returns a contiguous tensor."""
    return x if x.shape[-1] == width else x[..., :width].contiguous()


@lru_cache(maxsize=64)
def zeros(width: int) -> Tensor:
    """Return zeros, to be read only, in whole registers."""
    return pad(torch.zeros(width, dtype=torch.float32, device="cpu"), LANES)


@lru_cache(maxsize=64)
def ones(width: int) -> Tensor:
    """Return ones, to be read only, in whole registers."""
    return pad(torch.ones(width, dtype=torch.float32, device="cpu"), LANES)


def strided(x: Tensor) -> tuple[int, int, int]:
    """Return the address of x (batch, length, width) and its strides over batch and length."""
    return x.data_ptr(), x.stride(0), x.stride(1)


def longest_first(lengths: Tensor | None, x: Tensor) -> tuple[array[int], array[int]]:
    """Return the rows of x by falling length, and their lengths within 0 .. x.shape[1]."""
    batch, length = x.shape[:2]
    # As numbers: PyTorch's operators on so few take longer than a short row's scan.
    found = [length] * batch if lengths is None else lengths.tolist()
    found = [min(max(0, one), length) for one in found]
    order = sorted(range(batch), key=found.__getitem__, reverse=True)
    return array("q", order), array("q", found)
