"""How tensors are laid out for the CPU kernels: whole registers, unit stride over channels."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.lanes import LANES


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


@lru_cache(maxsize=64)
def _whole_rows(batch: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.arange(batch, device="cpu"), torch.full((batch,), length, device="cpu")


def longest_first(lengths: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of x by falling length, and their lengths within 0 .. x.shape[1]."""
    batch, length = x.shape[:2]
    if lengths is None:
        return _whole_rows(batch, length)
    lengths = lengths.clamp(0, length)
    return torch.argsort(lengths, descending=True, stable=True), lengths
