"""Implement root mean square normalization on a CPU with numba kernels.

The kernels compute in float32. The output is float32 or bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kinopoisk_ft.ops.simd import layout
from kinopoisk_ft.ops.simd.custom_op import call_below_autograd, register_autograd, register_op
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.load_store import allocate, load, store
from kinopoisk_ft.ops.simd.register import LANES, splat, sum_lanes
from kinopoisk_ft.ops.simd.threads import as_bfloat16, as_float32, run_kernel, take_task

# Rows per task.
ROWS = 64
_f = np.float32

# Fields of the kernels' int64 table; tensors are passed as addresses.
# Forward and backward: [1] rows, [2] width including padding, [3] two float32 numbers (1 / width
# without padding, and eps), [4] x, [5] weight, [7] scale of each row.
# Forward only: [6] out (rows, width). Backward only: [6] gradient of the output, [8] gradient of x
# (rows, width), [9] gradient of weight, summed over the rows of each task (tasks, width).


@njit(**OPTIONS)
def _normalize(table: Any, out: Any) -> None:
    rows, width, numbers = table[1], table[2], as_float32(table[3])
    x, weight, scales = as_float32(table[4]), as_float32(table[5]), as_float32(table[7])
    inverse_width, eps = numbers[0], numbers[1]
    task = take_task(table)
    while task * ROWS < rows:
        for row in range(task * ROWS, min(rows, (task + 1) * ROWS)):
            at, squares = row * width, splat(_f(0))
            for j in range(0, width, LANES):
                value = load(x, at + j)
                squares = value * value + squares
            # Padding adds zeros to the sum, so the sum is divided by the width without padding.
            scale = _f(1) / np.sqrt(sum_lanes(squares) * inverse_width + eps)
            scales[row] = scale
            for j in range(0, width, LANES):
                store(out, at + j, load(x, at + j) * splat(scale) * load(weight, j))
        task = take_task(table)


@njit(**OPTIONS)
def _normalize_backward(table: Any, grad: Any) -> None:
    rows, width, inverse_width = table[1], table[2], as_float32(table[3])[0]
    x, weight, scales = as_float32(table[4]), as_float32(table[5]), as_float32(table[7])
    grad_x, parts, grad_weight = as_float32(table[8]), as_float32(table[9]), allocate(width)
    task = take_task(table)
    while task * ROWS < rows:
        grad_weight[:] = _f(0)
        for row in range(task * ROWS, min(rows, (task + 1) * ROWS)):
            at, scale, products = row * width, scales[row], splat(_f(0))
            for j in range(0, width, LANES):
                g = load(grad, at + j)
                value = load(x, at + j) * splat(scale)
                products = g * load(weight, j) * value + products
                store(grad_weight, j, g * value + load(grad_weight, j))
            # y = x scale weight, where scale depends on x. With g as the gradient of y:
            # grad_x = scale (g weight - x scale mean(g weight x scale)).
            mean = sum_lanes(products) * inverse_width
            for j in range(0, width, LANES):
                value = load(x, at + j) * splat(scale)
                slope = load(grad, at + j) * load(weight, j) - value * splat(mean)
                store(grad_x, at + j, slope * splat(scale))
        # The caller adds the parts, so that the result does not depend on the number of threads.
        for j in range(0, width, LANES):
            store(parts, task * width + j, load(grad_weight, j))
        task = take_task(table)


def normalize_float32(table: Any) -> None:
    """Normalize rows and write the output in float32."""
    _normalize(table, as_float32(table[6]))


def normalize_bfloat16(table: Any) -> None:
    """Normalize rows and write the output in bfloat16."""
    _normalize(table, as_bfloat16(table[6]))


def normalize_backward_float32(table: Any) -> None:
    """Run the backward pass for a float32 gradient of the output."""
    _normalize_backward(table, as_float32(table[6]))


def normalize_backward_bfloat16(table: Any) -> None:
    """Run the backward pass for a bfloat16 gradient of the output."""
    _normalize_backward(table, as_bfloat16(table[6]))


FORWARD = {torch.float32: normalize_float32, torch.bfloat16: normalize_bfloat16}
BACKWARD = {torch.float32: normalize_backward_float32, torch.bfloat16: normalize_backward_bfloat16}


class _Inputs:
    def __init__(self, x: Tensor, weight: Tensor | None, eps: float) -> None:
        real = x.shape[-1]
        # A kernel gets only addresses, so keep the tensors until the kernel has finished.
        self.x = layout.pad(x.reshape(-1, real), LANES).contiguous()
        self.rows, self.width = self.x.shape
        self.weight = layout.pad_or_fill(weight, real, 1.0)
        self.numbers = torch.tensor([1 / real, eps], dtype=torch.float32, device="cpu")
        self.tasks = -(-self.rows // ROWS)
        tensors = (self.numbers, self.x, self.weight)
        self.fields = [self.rows, self.width, *(y.data_ptr() for y in tensors)]


def _normalize_fake(
    x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:-1].numel())


@register_op(_normalize_fake, "rms_norm")
def normalize(
    x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Normalize x (..., width). Return the output and 1 / sqrt(mean(x^2) + eps) of each row."""
    inputs = _Inputs(x, weight, eps)
    out = x.new_empty(inputs.rows, inputs.width, dtype=dtype)
    scales = x.new_empty(inputs.rows)
    fields = [*inputs.fields, out.data_ptr(), scales.data_ptr()]
    run_kernel(FORWARD[dtype], inputs.tasks, fields)
    return layout.unpad(out, x.shape[-1]).view(x.shape), scales


def _normalize_backward_fake(
    grad: Tensor, scales: Tensor, x: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[-1])


@register_op(_normalize_backward_fake, "rms_norm_backward")
def normalize_backward(
    grad: Tensor, scales: Tensor, x: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute the gradients w.r.t. x and weight. `scales` is the second result of `normalize`."""
    # The backward kernel reads the scales, so it does not need eps.
    inputs = _Inputs(x, weight, 0.0)
    grad = layout.pad(grad.reshape(inputs.rows, -1), LANES).contiguous()
    grad_x, parts = torch.empty_like(inputs.x), x.new_empty(inputs.tasks, inputs.width)
    fields = [*inputs.fields, *(y.data_ptr() for y in (grad, scales, grad_x, parts))]
    run_kernel(BACKWARD[grad.dtype], inputs.tasks, fields)
    return layout.unpad(grad_x, x.shape[-1]).view(x.shape), layout.unpad(parts.sum(0), x.shape[-1])


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Any:
        out, scales = call_below_autograd(normalize, x, weight, eps, dtype)
        ctx.save_for_backward(scales, x, weight)
        ctx.mark_non_differentiable(scales)
        # The scales have no gradient. By default PyTorch would allocate zeros as their gradient.
        ctx.set_materialize_grads(False)
        return out, scales

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        scales, x, weight = ctx.saved_tensors
        grad_x, grad_weight = normalize_backward(grad, scales, x, weight)
        return grad_x, None if weight is None else grad_weight, None, None


register_autograd(normalize, _Normalize)
