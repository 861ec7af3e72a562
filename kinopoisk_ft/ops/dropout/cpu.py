"""Dropout on a CPU as a PyTorch operator over numba kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kinopoisk_ft.ops.simd.custom_op import below_autograd, differentiate, operator
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.load_store import read, write
from kinopoisk_ft.ops.simd.random import factors, row_key
from kinopoisk_ft.ops.simd.register import LANES
from kinopoisk_ft.ops.simd.threads import bfloats, compiled, floats, share, take

ROW = 8192  # part of the definition: another number draws other masks


@njit(**OPTIONS)
def _drop(a: Any, x: Any, out: Any, room: Any) -> None:
    """Fill out with x times 0 or the scale; room: `LANES` elements for the last few."""
    size, key, threshold, scale = a[1], a[2], a[3], floats(a[4])[0]
    while True:
        row = take(a)
        start = row * ROW
        if start >= size:
            return
        own, wide = row_key(key, row), min(ROW, size - start)
        whole = wide - wide % LANES
        for j in range(0, whole, LANES):
            f = factors(own, j, threshold, scale)
            write(out, start + j, read(x, start + j) * f)
        if whole < wide:
            for j in range(wide - whole):
                room[j] = x[start + whole + j]
            write(room, 0, read(room, 0) * factors(own, whole, threshold, scale))
            for j in range(wide - whole):
                out[start + whole + j] = room[j]


def drop_float32(a: Any) -> None:
    """Drop elements of a float32 tensor."""
    room = np.zeros(LANES, np.float32)
    _drop(a, floats(a[5]), floats(a[6]), floats(room.ctypes.data))


def drop_bfloat16(a: Any) -> None:
    """Drop elements of a bfloat16 tensor."""
    room = np.zeros(LANES, np.uint16)
    _drop(a, bfloats(a[5]), bfloats(a[6]), bfloats(room.ctypes.data))


KERNELS = {
    torch.float32: drop_float32,
    torch.bfloat16: drop_bfloat16,
}


def rate(p: float) -> tuple[int, float]:
    """Return the threshold of a draw that keeps an element, and what a kept one is multiplied by.

    The rate is right to 2**-32.

    Raises:
        ValueError: p is not from 0 to 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"the probability of dropout must be from 0 to 1, not {p}")
    return min(round((1 - p) * 2**32), 2**32 - 1), 1 / (1 - p) if p < 1 else 0.0


def _drop_fake(x: Tensor, key: Tensor, p: float) -> Tensor:
    return x.new_empty(x.shape)


@operator(_drop_fake, "dropout")
def drop(x: Tensor, key: Tensor, p: float) -> Tensor:
    """Return x, contiguous, with each element zero at rate p, else divided by 1 - p.

    key: () int64; it and an element's index decide, whatever the number of threads.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    threshold, scale = rate(p)
    factor = torch.tensor([scale])
    fields = [x.numel(), int(key), threshold, factor.data_ptr(), x.data_ptr(), out.data_ptr()]
    share(compiled(KERNELS[x.dtype]), -(-x.numel() // ROW), fields)
    return out


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, key: Tensor, p: float) -> Any:
        ctx.save_for_backward(key)
        ctx.p = p
        return below_autograd(drop, x, key, p)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (key,) = ctx.saved_tensors
        return drop(grad, key, ctx.p), None, None


differentiate(drop, _Drop)
