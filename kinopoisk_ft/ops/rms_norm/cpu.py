"""Root mean square normalisation on a CPU as PyTorch operators over numba kernels.

They compute in float32; the output may be bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kinopoisk_ft.ops.simd.custom_op import below_autograd, differentiate, operator
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.layout import cut, ones, pad
from kinopoisk_ft.ops.simd.load_store import read, scratch, write
from kinopoisk_ft.ops.simd.register import LANES, load, splat, store, total
from kinopoisk_ft.ops.simd.threads import bfloats, compiled, floats, share, take

ROWS = 64
_f = np.float32


@njit(**OPTIONS)
def _normalise(a: Any, out: Any) -> None:
    """Fill out (rows, width) and scales (rows,), what each row is multiplied by."""
    rows, width, share, eps = a[1], a[2], floats(a[3])[0], floats(a[3])[1]
    x, weight, scales = floats(a[4]), floats(a[5]), floats(a[7])
    task = take(a)
    while task * ROWS < rows:
        for row in range(task * ROWS, min(rows, (task + 1) * ROWS)):
            at, squares = row * width, splat(_f(0))
            for j in range(0, width, LANES):
                value = load(x, at + j)
                squares = value * value + squares
            scale = _f(1) / np.sqrt(total(squares) * share + eps)
            scales[row] = scale
            for j in range(0, width, LANES):
                write(out, at + j, load(x, at + j) * splat(scale) * load(weight, j))
        task = take(a)


@njit(**OPTIONS)
def _normalise_back(a: Any, grad: Any) -> None:
    """Fill the gradient of x (rows, width) and, by task, that of weight (tasks, width)."""
    rows, width, x, weight = a[1], a[2], floats(a[4]), floats(a[5])
    scales, grad_x, parts = floats(a[7]), floats(a[8]), floats(a[9])
    share, own = floats(a[3])[0], scratch(width)
    task = take(a)
    while task * ROWS < rows:
        own[:] = _f(0)
        for row in range(task * ROWS, min(rows, (task + 1) * ROWS)):
            at, scale, products = row * width, scales[row], splat(_f(0))
            for j in range(0, width, LANES):
                g = read(grad, at + j)
                value = load(x, at + j) * splat(scale)
                products = g * load(weight, j) * value + products
                store(own, j, g * value + load(own, j))
            mean = total(products) * share
            for j in range(0, width, LANES):
                value = load(x, at + j) * splat(scale)
                slope = read(grad, at + j) * load(weight, j) - value * splat(mean)
                store(grad_x, at + j, slope * splat(scale))
        for j in range(0, width, LANES):
            store(parts, task * width + j, load(own, j))
        task = take(a)


def normalise_float32(a: Any) -> None:
    """Forward, to float32."""
    _normalise(a, floats(a[6]))


def normalise_bfloat16(a: Any) -> None:
    """Forward, to bfloat16."""
    _normalise(a, bfloats(a[6]))


def normalise_back_float32(a: Any) -> None:
    """Backward, from float32."""
    _normalise_back(a, floats(a[6]))


def normalise_back_bfloat16(a: Any) -> None:
    """Backward, from bfloat16."""
    _normalise_back(a, bfloats(a[6]))


FORWARD = {
    torch.float32: normalise_float32,
    torch.bfloat16: normalise_bfloat16,
}
BACKWARD = {
    torch.float32: normalise_back_float32,
    torch.bfloat16: normalise_back_bfloat16,
}


class _Inputs:
    """What both kernels read; padded copies are kept alive here while the kernels run."""

    def __init__(self, x: Tensor, weight: Tensor | None, eps: float) -> None:
        real = x.shape[-1]
        self.x = pad(x.reshape(-1, real), LANES).contiguous()
        self.rows, self.width = self.x.shape
        self.weight = ones(real) if weight is None else pad(weight, LANES).contiguous()
        self.numbers = torch.tensor([1 / real, eps], dtype=torch.float32, device="cpu")
        self.tasks = -(-self.rows // ROWS)
        alive = (self.numbers, self.x, self.weight)
        self.fields = [self.rows, self.width, *(y.data_ptr() for y in alive)]


def _normalise_fake(
    x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:-1].numel())


@operator(_normalise_fake, "rms_norm")
def normalise(
    x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the output, of that dtype, and what each row was multiplied by."""
    inputs = _Inputs(x, weight, eps)
    out = x.new_empty(inputs.rows, inputs.width, dtype=dtype)
    scales = x.new_empty(inputs.rows)
    fields = [*inputs.fields, out.data_ptr(), scales.data_ptr()]
    share(compiled(FORWARD[dtype]), inputs.tasks, fields)
    return cut(out, x.shape[-1]).view(x.shape), scales


def _normalise_backward_fake(
    grad: Tensor, scales: Tensor, x: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[-1])


@operator(_normalise_backward_fake, "rms_norm_backward")
def normalise_backward(
    grad: Tensor, scales: Tensor, x: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight."""
    inputs = _Inputs(x, weight, 0.0)
    grad = pad(grad.reshape(inputs.rows, -1), LANES).contiguous()
    grad_x, parts = torch.empty_like(inputs.x), x.new_empty(inputs.tasks, inputs.width)
    alive = (grad, scales, grad_x, parts)
    fields = [*inputs.fields, *(y.data_ptr() for y in alive)]
    share(compiled(BACKWARD[grad.dtype]), inputs.tasks, fields)
    return cut(grad_x, x.shape[-1]).view(x.shape), cut(parts.sum(0), x.shape[-1])


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Any:
        out, scales = below_autograd(normalise, x, weight, eps, dtype)
        ctx.save_for_backward(scales, x, weight)
        ctx.mark_non_differentiable(scales)
        ctx.set_materialize_grads(False)
        return out, scales

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        scales, x, weight = ctx.saved_tensors
        grad_x, grad_weight = normalise_backward(grad, scales, x, weight)
        return grad_x, None if weight is None else grad_weight, None, None


differentiate(normalise, _Normalise)
