"""Dropout on a CPU as a PyTorch operator over numba kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kinopoisk_ft.ops import dropout_rows
from kinopoisk_ft.ops.operators import below_autograd, differentiate, operator
from kinopoisk_ft.ops.threads import compiled, share

KERNELS = {
    torch.float32: dropout_rows.drop_float32,
    torch.bfloat16: dropout_rows.drop_bfloat16,
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
    share(compiled(KERNELS[x.dtype]), -(-x.numel() // dropout_rows.ROW), fields)
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
