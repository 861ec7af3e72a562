"""Implement dropout on a CPU with numba kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kinopoisk_ft.ops.simd.custom_op import call_below_autograd, register_autograd, register_op
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.load_store import load, store
from kinopoisk_ft.ops.simd.random import derive_row_key, draw_factors
from kinopoisk_ft.ops.simd.register import LANES
from kinopoisk_ft.ops.simd.threads import as_bfloat16, as_float32, run_kernel, take_task

# Elements that share one row key and form one task. Another number would give different masks.
ROW = 8192

# Fields of the kernels' int64 table: [1] number of elements, [2] key and [3] threshold of the
# random draws, and the addresses of [4] the float32 scale, [5] x and [6] out.


@njit(**OPTIONS)
def _drop(table: Any, x: Any, out: Any, tail: Any) -> None:
    size, key, threshold, scale = table[1], table[2], table[3], as_float32(table[4])[0]
    while True:
        row = take_task(table)
        start = row * ROW
        if start >= size:
            return
        row_key, length = derive_row_key(key, row), min(ROW, size - start)
        # Process whole vectors first. Copy the remaining elements to `tail`, because a whole vector
        # would reach beyond the end of x.
        whole = length - length % LANES
        for j in range(0, whole, LANES):
            factors = draw_factors(row_key, j, threshold, scale)
            store(out, start + j, load(x, start + j) * factors)
        if whole < length:
            for j in range(length - whole):
                tail[j] = x[start + whole + j]
            store(tail, 0, load(tail, 0) * draw_factors(row_key, whole, threshold, scale))
            for j in range(length - whole):
                out[start + whole + j] = tail[j]


def drop_float32(table: Any) -> None:
    """Drop elements of a float32 tensor."""
    _drop(table, as_float32(table[5]), as_float32(table[6]), np.zeros(LANES, np.float32))


def drop_bfloat16(table: Any) -> None:
    """Drop elements of a bfloat16 tensor."""
    _drop(table, as_bfloat16(table[5]), as_bfloat16(table[6]), np.zeros(LANES, np.uint16))


KERNELS = {torch.float32: drop_float32, torch.bfloat16: drop_bfloat16}


def compute_threshold(p: float) -> tuple[int, float]:
    """Convert a dropout probability to the threshold and the scale for `draw_factors`.

    Rounding the threshold changes the probability by at most 2**-32.

    Raises:
        ValueError: p is not between 0 and 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"the dropout probability must be from 0 to 1, not {p}")
    # The threshold must fit in 32 bits.
    return min(round((1 - p) * 2**32), 2**32 - 1), 1 / (1 - p) if p < 1 else 0.0


def _drop_fake(x: Tensor, key: Tensor, p: float) -> Tensor:
    return x.new_empty(x.shape)


@register_op(_drop_fake, "dropout")
def drop(x: Tensor, key: Tensor, p: float) -> Tensor:
    """Set each element of x to zero with probability p, and divide all others by 1 - p.

    Args:
        x: tensor of any shape.
        key: int64 scalar. Equal keys give equal masks.
        p: dropout probability, from 0 to 1.

    Returns:
        A contiguous tensor with the shape and dtype of x.
    """
    x = x.contiguous()
    out = torch.empty_like(x)
    threshold, scale = compute_threshold(p)
    # The table contains only integers, so the address of the scale is passed.
    factor = torch.tensor([scale], dtype=torch.float32, device="cpu")
    fields = [x.numel(), int(key), threshold, factor.data_ptr(), x.data_ptr(), out.data_ptr()]
    run_kernel(KERNELS[x.dtype], -(-x.numel() // ROW), fields)
    return out


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, key: Tensor, p: float) -> Any:
        ctx.save_for_backward(key)
        ctx.p = p
        return call_below_autograd(drop, x, key, p)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (key,) = ctx.saved_tensors
        # The same key gives the same mask again.
        return drop(grad, key, ctx.p), None, None


register_autograd(drop, _Drop)
