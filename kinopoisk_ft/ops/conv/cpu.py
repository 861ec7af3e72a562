"""Causal depthwise convolution and SiLU on a CPU as PyTorch operators over numba kernels.

They compute in float32; x and the output may be bfloat16, weight and bias are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kinopoisk_ft.ops.simd.custom_op import below_autograd, differentiate, operator
from kinopoisk_ft.ops.simd.denormals import flush_tiny, restore
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.layout import cut, longest_first, pad, rows, strided, zeros
from kinopoisk_ft.ops.simd.load_store import clear, read, scratch, write
from kinopoisk_ft.ops.simd.math import sigmoid
from kinopoisk_ft.ops.simd.register import LANES, load, prefetch, splat, store
from kinopoisk_ft.ops.simd.threads import bfloats, compiled, floats, integers, share, take

CHUNK = 32
BLOCK = 128
_f = np.float32


@njit(forceinline=True)
def _convolve(
    x: Any, at: int, step: int, weight: Any, w_at: int, width: int, taps: int, t: int, s: Any
) -> Any:
    """Add to s the taps that reach no further back than the row's start; x[at] is step t."""
    for back in range(min(taps, t + 1)):
        s = load(weight, w_at + (taps - 1 - back) * width) * read(x, at - back * step) + s
    return s


@njit(**OPTIONS)
def _forward(a: Any, x: Any, out: Any) -> None:
    """Fill out (batch, length, width)."""
    batch, length, width, taps = a[1], a[2], a[3], a[4]
    order, lengths, weight, bias = integers(a[5]), integers(a[6]), floats(a[7]), floats(a[8])
    row_step, step = a[10], a[11]
    blocks = (width + BLOCK - 1) // BLOCK
    mode = flush_tiny()
    task = take(a)
    while task < batch * blocks:
        row, origin = order[task // blocks], task % blocks * BLOCK
        real, wide = lengths[row], min(BLOCK, width - origin)
        base, source = row * length * width + origin, row * row_step + origin
        for t in range(real):
            for j in range(0, wide, LANES):
                prefetch(x, source + (t + CHUNK) * step + j)
                prefetch(out, base + (t + CHUNK) * width + j)
                s = load(bias, origin + j)
                s = _convolve(x, source + t * step + j, step, weight, origin + j, width, taps, t, s)
                write(out, base + t * width + j, s * sigmoid(s))
        clear(out, row, length, width, real, task % blocks, blocks)
        task = take(a)
    restore(mode)


@njit(**OPTIONS)
def _enter(
    x: Any, at: int, step: int, weight: Any, bias: Any, origin: int, width: int, taps: int,
    start: int, grad: Any, grad_at: int, grad_step: int, ds: Any, own: Any, wide: int, steps: int,
) -> None:  # fmt: skip
    """Put the gradient before SiLU into ds (time, BLOCK), sums into own (taps + 1, BLOCK)."""
    for j in range(0, wide, LANES):
        for t in range(steps):
            s = load(bias, origin + j)
            here = at + t * step + j
            prefetch(x, here - CHUNK * step)
            prefetch(grad, grad_at + (t - CHUNK) * grad_step + j)
            s = _convolve(x, here, step, weight, origin + j, width, taps, start + t, s)
            p = sigmoid(s)
            value = read(grad, grad_at + t * grad_step + j) * (p + s * p * (splat(_f(1)) - p))
            store(ds, t * BLOCK + j, value)
            for back in range(min(taps, start + t + 1)):
                k = (taps - 1 - back) * BLOCK + j
                store(own, k, value * read(x, here - back * step) + load(own, k))
            store(own, taps * BLOCK + j, value + load(own, taps * BLOCK + j))


@njit(**OPTIONS)
def _leave(
    ds: Any, weight: Any, origin: int, width: int, taps: int, later: int,
    grad_x: Any, out_at: int, wide: int, steps: int,
) -> None:  # fmt: skip
    """Write the gradient of x; later: real steps in ds, those of the following chunk included."""
    for t in range(steps):
        for j in range(0, wide, LANES):
            s = splat(_f(0))
            for ahead in range(min(taps, later - t)):
                w = load(weight, origin + j + (taps - 1 - ahead) * width)
                s = w * load(ds, (t + ahead) * BLOCK + j) + s
            prefetch(grad_x, out_at + (t - CHUNK) * width + j)
            write(grad_x, out_at + t * width + j, s)


@njit(**OPTIONS)
def _backward(a: Any, x: Any, grad: Any, grad_x: Any) -> None:
    """Fill grad_x (batch, length, width) and, by row, weight and bias: (batch, taps + 1, width)."""
    batch, length, width, taps = a[1], a[2], a[3], a[4]
    order, lengths, weight, bias = integers(a[5]), integers(a[6]), floats(a[7]), floats(a[8])
    row_step, step, grad_row, grad_step, sums = a[10], a[11], a[13], a[14], floats(a[16])
    blocks = (width + BLOCK - 1) // BLOCK
    ds, own = scratch((CHUNK + taps - 1) * BLOCK), scratch((taps + 1) * BLOCK)
    mode = flush_tiny()
    task = take(a)
    while task < batch * blocks:
        row, origin = order[task // blocks], task % blocks * BLOCK
        real, wide = lengths[row], min(BLOCK, width - origin)
        base = row * length * width + origin
        own[:] = _f(0)
        for chunk in range((real + CHUNK - 1) // CHUNK - 1, -1, -1):
            start = chunk * CHUNK
            steps = min(CHUNK, real - start)
            later = min(steps + taps - 1, real - start)
            for i in range((later - steps) * BLOCK - 1, -1, -1):
                ds[steps * BLOCK + i] = ds[i]
            _enter(
                x, row * row_step + start * step + origin, step, weight, bias, origin, width, taps,
                start, grad, row * grad_row + start * grad_step + origin, grad_step,
                ds, own, wide, steps,
            )  # fmt: skip
            _leave(
                ds, weight, origin, width, taps, later, grad_x, base + start * width, wide, steps
            )
        clear(grad_x, row, length, width, real, task % blocks, blocks)
        for j in range(0, wide, LANES):
            for k in range(taps + 1):
                store(sums, (row * (taps + 1) + k) * width + origin + j, load(own, k * BLOCK + j))
        task = take(a)
    restore(mode)


def convolve_float32(a: Any) -> None:
    """Forward, on float32."""
    _forward(a, floats(a[9]), floats(a[12]))


def convolve_bfloat16(a: Any) -> None:
    """Forward, on bfloat16."""
    _forward(a, bfloats(a[9]), bfloats(a[12]))


def convolve_back_float32(a: Any) -> None:
    """Backward, on float32."""
    _backward(a, floats(a[9]), floats(a[12]), floats(a[15]))


def convolve_back_bfloat16(a: Any) -> None:
    """Backward, on bfloat16."""
    _backward(a, bfloats(a[9]), bfloats(a[12]), bfloats(a[15]))


FORWARD = {
    torch.float32: convolve_float32,
    torch.bfloat16: convolve_bfloat16,
}
BACKWARD = {
    torch.float32: convolve_back_float32,
    torch.bfloat16: convolve_back_bfloat16,
}


class _Inputs:
    """What both kernels read; padded copies are kept alive here while the kernels run."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
    ) -> None:
        taps = pad(weight.t(), LANES).contiguous()
        offset = zeros(x.shape[2]) if bias is None else pad(bias, LANES).contiguous()
        self.taps, self.width = taps.shape
        ordered, source = longest_first(lengths, x), rows(x)
        self.alive = (ordered, source, taps, offset)
        self.shape = (x.shape[0], x.shape[1], self.width)
        self.tasks = x.shape[0] * -(-self.width // BLOCK)
        self.fields = [*self.shape, self.taps, *(y.buffer_info()[0] for y in ordered)]
        self.fields += [taps.data_ptr(), offset.data_ptr(), *strided(source)]


def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@operator(_conv_fake, "causal_conv1d")
def conv(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Return silu(causal convolution), (batch, length, d_inner)."""
    inputs = _Inputs(x, weight, bias, lengths)
    out = x.new_empty(inputs.shape)
    share(compiled(FORWARD[x.dtype]), inputs.tasks, [*inputs.fields, out.data_ptr()])
    return cut(out, x.shape[2])


def _conv_backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(x.shape[2])


@operator(_conv_backward_fake, "causal_conv1d_backward")
def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias."""
    inputs = _Inputs(x, weight, bias, lengths)
    grad_x = x.new_empty(inputs.shape)
    parts = weight.new_empty(x.shape[0], inputs.taps + 1, inputs.width)
    grad = rows(grad)
    fields = [*inputs.fields, *strided(grad), grad_x.data_ptr(), parts.data_ptr()]
    share(compiled(BACKWARD[x.dtype]), inputs.tasks, fields)
    sums = parts.sum(0)[:, : x.shape[2]]
    return cut(grad_x, x.shape[2]), sums[:-1].t().contiguous(), sums[-1].clone()


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        ctx.save_for_backward(*inputs)
        return below_autograd(conv, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, lengths = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = conv_backward(grad, x, weight, bias, lengths)
        return grad_x, grad_weight, None if bias is None else grad_bias, None


differentiate(conv, _Conv)
