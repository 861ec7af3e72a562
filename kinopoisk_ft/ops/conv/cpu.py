"""Implement the causal convolution on a CPU with numba kernels.

The kernels compute in float32. The input x and the output are float32 or bfloat16. Weight and bias
are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kinopoisk_ft.ops.simd import layout
from kinopoisk_ft.ops.simd.custom_op import call_below_autograd, register_autograd, register_op
from kinopoisk_ft.ops.simd.denormals import flush_denormals, restore_mode
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.load_store import allocate, load, prefetch, store, zero_padding
from kinopoisk_ft.ops.simd.math import sigmoid
from kinopoisk_ft.ops.simd.register import LANES, splat
from kinopoisk_ft.ops.simd.threads import (
    as_bfloat16,
    as_float32,
    as_int64,
    run_kernel,
    take_task,
)

# Time steps that the backward kernel processes together. Both kernels prefetch this far ahead.
CHUNK = 32
# Channels per task. A task is one row of the batch and one block of channels.
BLOCK = 128
_f = np.float32

# Fields of the kernels' int64 table; tensors are passed as addresses, and strides count elements.
# Forward and backward: [1] batch, [2] length, [3] width including padding, [4] taps, [5] row
# numbers (the longest row first), [6] lengths, [7] weight (taps, width), [8] bias (width,), [9] x,
# [10] and [11] strides of x over batch and time.
# Forward only: [12] out (batch, length, width).
# Backward only: [12] gradient of the output, [13] and [14] strides of this gradient over batch and
# time, [15] gradient of x (batch, length, width), [16] gradients of weight and bias for each row
# (batch, taps + 1, width).


@njit(forceinline=True)
def _convolve(
    x: Any, at: int, stride: int, weight: Any, w_at: int, width: int, taps: int, t: int, total: Any
) -> Any:
    """Compute the convolution of `LANES` channels at time step t, and add it to `total`.

    The first step is t = 0, and x is zero before it. For the first of these channels,
    x[at] and x[at - stride] are the values at steps t and t - 1, and weight[w_at] is the first tap.
    """
    # The last tap is multiplied by the current step, the first tap by the oldest one.
    for back in range(min(taps, t + 1)):
        w = load(weight, w_at + (taps - 1 - back) * width)
        total = w * load(x, at - back * stride) + total
    return total


@njit(**OPTIONS)
def _convolve_forward(table: Any, x: Any, out: Any) -> None:
    batch, length, width, taps = table[1], table[2], table[3], table[4]
    order, lengths = as_int64(table[5]), as_int64(table[6])
    weight, bias = as_float32(table[7]), as_float32(table[8])
    row_stride, step = table[10], table[11]
    blocks = (width + BLOCK - 1) // BLOCK
    mode = flush_denormals()
    task = take_task(table)
    while task < batch * blocks:
        row, origin = order[task // blocks], task % blocks * BLOCK
        real, channels = lengths[row], min(BLOCK, width - origin)
        out_at, x_at = row * length * width + origin, row * row_stride + origin
        for t in range(real):
            for j in range(0, channels, LANES):
                here = x_at + t * step + j
                prefetch(x, here + CHUNK * step)
                prefetch(out, out_at + (t + CHUNK) * width + j)
                s = load(bias, origin + j)
                s = _convolve(x, here, step, weight, origin + j, width, taps, t, s)
                # silu(s) = s sigmoid(s)
                store(out, out_at + t * width + j, s * sigmoid(s))
        zero_padding(out, row, length, width, real, task % blocks, blocks)
        task = take_task(table)
    restore_mode(mode)


@njit(**OPTIONS)
def _backpropagate_silu(
    x: Any, at: int, step: int, weight: Any, bias: Any, origin: int, width: int, taps: int,
    start: int, grad: Any, grad_at: int, grad_step: int, grad_s: Any, sums: Any, channels: int,
    steps: int,
) -> None:  # fmt: skip
    """Compute the gradients w.r.t. weight, bias and s for one chunk. s is the input of SiLU.

    Args:
        start: first step of the chunk.
        grad_s: (steps, BLOCK). The gradient w.r.t. s is written to this array.
        sums: (taps + 1, BLOCK). The gradients w.r.t. weight and bias are added to this array.
    """
    for j in range(0, channels, LANES):
        for t in range(steps):
            s = load(bias, origin + j)
            here = at + t * step + j
            prefetch(x, here - CHUNK * step)
            prefetch(grad, grad_at + (t - CHUNK) * grad_step + j)
            # Recompute s, because the forward pass does not save it.
            s = _convolve(x, here, step, weight, origin + j, width, taps, start + t, s)
            # silu'(s) = p + s p (1 - p) with p = sigmoid(s).
            p = sigmoid(s)
            value = load(grad, grad_at + t * grad_step + j) * (p + s * p * (splat(_f(1)) - p))
            store(grad_s, t * BLOCK + j, value)
            for back in range(min(taps, start + t + 1)):
                k = (taps - 1 - back) * BLOCK + j
                store(sums, k, value * load(x, here - back * step) + load(sums, k))
            store(sums, taps * BLOCK + j, value + load(sums, taps * BLOCK + j))


@njit(**OPTIONS)
def _store_input_gradient(
    grad_s: Any, weight: Any, origin: int, width: int, taps: int, known: int,
    grad_x: Any, out_at: int, channels: int, steps: int,
) -> None:  # fmt: skip
    # A step of x contributes to s at the same step and at the taps - 1 following steps. `known` is
    # the number of steps in grad_s, including the first steps of the following chunk.
    for t in range(steps):
        for j in range(0, channels, LANES):
            s = splat(_f(0))
            for ahead in range(min(taps, known - t)):
                w = load(weight, origin + j + (taps - 1 - ahead) * width)
                s = w * load(grad_s, (t + ahead) * BLOCK + j) + s
            prefetch(grad_x, out_at + (t - CHUNK) * width + j)
            store(grad_x, out_at + t * width + j, s)


@njit(**OPTIONS)
def _convolve_backward(table: Any, x: Any, grad: Any, grad_x: Any) -> None:
    batch, length, width, taps = table[1], table[2], table[3], table[4]
    order, lengths = as_int64(table[5]), as_int64(table[6])
    weight, bias = as_float32(table[7]), as_float32(table[8])
    row_stride, step, grad_row, grad_step = table[10], table[11], table[13], table[14]
    row_sums = as_float32(table[16])
    blocks = (width + BLOCK - 1) // BLOCK
    # grad_s (steps, BLOCK) also holds the first steps of the following chunk.
    grad_s, sums = allocate((CHUNK + taps - 1) * BLOCK), allocate((taps + 1) * BLOCK)
    mode = flush_denormals()
    task = take_task(table)
    while task < batch * blocks:
        row, origin = order[task // blocks], task % blocks * BLOCK
        real, channels = lengths[row], min(BLOCK, width - origin)
        base = row * length * width + origin
        sums[:] = _f(0)
        # Process chunks backward in time, because grad_x depends on grad_s of later steps.
        for chunk in range((real + CHUNK - 1) // CHUNK - 1, -1, -1):
            start = chunk * CHUNK
            steps = min(CHUNK, real - start)
            known = min(steps + taps - 1, real - start)
            # Copy the first steps of the following chunk, which was processed before, to the end of
            # this chunk. Go backward, because source and destination may overlap.
            for i in range((known - steps) * BLOCK - 1, -1, -1):
                grad_s[steps * BLOCK + i] = grad_s[i]
            _backpropagate_silu(
                x, row * row_stride + start * step + origin, step, weight, bias, origin, width,
                taps, start, grad, row * grad_row + start * grad_step + origin, grad_step,
                grad_s, sums, channels, steps,
            )  # fmt: skip
            _store_input_gradient(
                grad_s, weight, origin, width, taps, known, grad_x, base + start * width, channels,
                steps,
            )  # fmt: skip
        zero_padding(grad_x, row, length, width, real, task % blocks, blocks)
        for j in range(0, channels, LANES):
            for k in range(taps + 1):
                at = (row * (taps + 1) + k) * width + origin + j
                store(row_sums, at, load(sums, k * BLOCK + j))
        task = take_task(table)
    restore_mode(mode)


def convolve_float32(table: Any) -> None:
    """Compute the convolution of a float32 x."""
    _convolve_forward(table, as_float32(table[9]), as_float32(table[12]))


def convolve_bfloat16(table: Any) -> None:
    """Compute the convolution of a bfloat16 x."""
    _convolve_forward(table, as_bfloat16(table[9]), as_bfloat16(table[12]))


def convolve_backward_float32(table: Any) -> None:
    """Compute the gradients for a float32 x."""
    _convolve_backward(table, as_float32(table[9]), as_float32(table[12]), as_float32(table[15]))


def convolve_backward_bfloat16(table: Any) -> None:
    """Compute the gradients for a bfloat16 x."""
    _convolve_backward(table, as_bfloat16(table[9]), as_bfloat16(table[12]), as_bfloat16(table[15]))


FORWARD = {torch.float32: convolve_float32, torch.bfloat16: convolve_bfloat16}
BACKWARD = {torch.float32: convolve_backward_float32, torch.bfloat16: convolve_backward_bfloat16}


class _Inputs:
    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
    ) -> None:
        # Transpose (d_inner, taps) to (taps, width), so that the channels of a tap are contiguous.
        weight = layout.pad(weight.t(), LANES).contiguous()
        bias = layout.pad_or_fill(bias, x.shape[2], 0.0)
        self.taps, self.width = weight.shape
        rows, source = layout.sort_by_length(lengths, x), layout.align_channels(x)
        # A kernel gets only addresses, so keep the tensors until the kernel has finished.
        self.alive = (rows, source, weight, bias)
        self.shape = (x.shape[0], x.shape[1], self.width)
        self.tasks = x.shape[0] * -(-self.width // BLOCK)
        self.fields = [*self.shape, self.taps, *(numbers.buffer_info()[0] for numbers in rows)]
        self.fields += [weight.data_ptr(), bias.data_ptr(), *layout.describe_memory(source)]


def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@register_op(_conv_fake, "causal_conv1d")
def conv(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Apply a causal convolution and SiLU to x (batch, length, d_inner)."""
    inputs = _Inputs(x, weight, bias, lengths)
    out = x.new_empty(inputs.shape)
    run_kernel(FORWARD[x.dtype], inputs.tasks, [*inputs.fields, out.data_ptr()])
    return layout.unpad(out, x.shape[2])


def _conv_backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(x.shape[2])


@register_op(_conv_backward_fake, "causal_conv1d_backward")
def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients w.r.t. x, weight and bias."""
    inputs = _Inputs(x, weight, bias, lengths)
    grad_x = x.new_empty(inputs.shape)
    row_sums = weight.new_empty(x.shape[0], inputs.taps + 1, inputs.width)
    grad = layout.align_channels(grad)
    fields = [*inputs.fields, *layout.describe_memory(grad), grad_x.data_ptr(), row_sums.data_ptr()]
    run_kernel(BACKWARD[x.dtype], inputs.tasks, fields)
    # (taps + 1, d_inner): the gradients of the taps, then of the bias.
    sums = row_sums.sum(0)[:, : x.shape[2]]
    return layout.unpad(grad_x, x.shape[2]), sums[:-1].t().contiguous(), sums[-1].clone()


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        ctx.save_for_backward(*inputs)
        return call_below_autograd(conv, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, lengths = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = conv_backward(grad, x, weight, bias, lengths)
        return grad_x, grad_weight, None if bias is None else grad_bias, None


register_autograd(conv, _Conv)
