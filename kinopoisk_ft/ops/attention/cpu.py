"""Implement attention with dropout on a CPU with PyTorch's matrix products and numba kernels.

In this file, a matrix contains the scores of one head of one review, with one row for each query.
The matrices are processed in chunks that fit in cache.

As in FlashAttention (Dao et al., 2022, https://arxiv.org/abs/2205.14135), the forward pass saves
only one number per row, and the backward pass computes the scores again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from kinopoisk_ft.ops.dropout.cpu import compute_threshold
from kinopoisk_ft.ops.simd.custom_op import call_below_autograd, register_autograd, register_op
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.load_store import allocate, load, store
from kinopoisk_ft.ops.simd.math import exp2
from kinopoisk_ft.ops.simd.random import derive_row_key, draw_factors
from kinopoisk_ft.ops.simd.register import LANES, maximum, splat, sum_lanes
from kinopoisk_ft.ops.simd.threads import as_bfloat16, as_float32, run_kernel, take_task

# Rows per task.
ROWS = 16
# Bytes of scores per thread. The backward pass keeps two such buffers in the L2 cache of a core.
SCORE_BYTES = 2**19
# The kernels compute powers of two: exp(x) = 2**(x log2(e)).
LOG2_E = 1 / math.log(2)
# Fields of the kernels' int64 table; tensors are passed as addresses, and strides count elements.
# Forward and backward: [1] rows of the chunk, [2] queries, [3] heads, [4] first matrix of the
# chunk, [5] keys including padding, [6] key and [7] threshold of the random draws, [8] bias, [9] to
# [11] strides of the bias over batch, heads and queries, [12] three float32 numbers (the factors of
# the logits, of kept probabilities and of the gradient), [13] scores.
# Forward only: [14] maximum and [15] sum of each row.
# Backward only: [14] log-sum-exp and [15] delta of each row, [16] gradients of the scores.
_f = np.float32
_LOWEST = _f(-np.inf)
_TINY = _f(2**-126)


@njit(forceinline=True)
def _locate_bias(table: Any, row: Any) -> Any:
    queries, heads = table[2], table[3]
    # Rows are numbered over the whole batch.
    matrix = row // queries
    return matrix // heads * table[9] + matrix % heads * table[10] + row % queries * table[11]


@njit(forceinline=True)
def _exp2_without_denormals(x: Any) -> Any:
    # For masked keys, `exp2` may return a denormal or 2**-126. Denormals would slow down the matrix
    # products that follow.
    return maximum(splat(_f(0)), exp2(x) - splat(_TINY))


@njit(**OPTIONS)
def _find_maximum(
    scores: Any, at: int, bias: Any, bias_at: int, width: int, logit_scale: Any, lanes: Any
) -> Any:
    # `maximum` returns its second argument if the first one is NaN. A NaN logit is therefore
    # ignored here, and makes the sum of the row NaN later.
    largest = splat(_LOWEST)
    for j in range(0, width, LANES):
        logit = load(scores, at + j) * splat(logit_scale) + load(bias, bias_at + j)
        largest = maximum(logit, largest)
    # `lanes` is scratch memory for one vector.
    store(lanes, 0, largest)
    result = lanes[0]
    for j in range(1, LANES):
        result = max(result, lanes[j])
    return result


@njit(**OPTIONS)
def _softmax_dropout(table: Any, scores: Any, lanes: Any) -> None:
    """Apply softmax without its division, then dropout, to the scores q k^T in place.

    The largest logit and the softmax denominator of each row are written to the arrays at the
    addresses table[14] and table[15]. `attend` divides the attention output by the denominators.
    """
    rows, queries, first, width = table[1], table[2], table[4], table[5]
    key, threshold, bias, numbers = table[6], table[7], as_float32(table[8]), as_float32(table[12])
    logit_scale, keep_scale = numbers[0], numbers[1]
    maxima, sums = as_float32(table[14]), as_float32(table[15])
    while True:
        start = take_task(table) * ROWS
        if start >= rows:
            return
        for i in range(start, min(rows, start + ROWS)):
            row, at = first * queries + i, i * width
            row_key, bias_at = derive_row_key(key, row), _locate_bias(table, row)
            largest = _find_maximum(scores, at, bias, bias_at, width, logit_scale, lanes)
            total = splat(_f(0))
            if largest == _LOWEST:
                # All logits are -inf or NaN. A row whose keys are all masked has zero output, and a
                # log-sum-exp of +inf gives zero gradients. A NaN logit must make the output NaN.
                for j in range(0, width, LANES):
                    total = total + load(scores, at + j) + load(bias, bias_at + j)
                    store(scores, at + j, splat(_f(0)))
                maxima[row], sums[row] = -_LOWEST, _f(1)
                if np.isnan(sum_lanes(total)):
                    maxima[row], sums[row] = _f(np.nan), _f(np.nan)
                continue
            for j in range(0, width, LANES):
                logit = load(scores, at + j) * splat(logit_scale) + load(bias, bias_at + j)
                e = _exp2_without_denormals(logit - splat(largest))
                total = total + e
                store(scores, at + j, e * draw_factors(row_key, j, threshold, keep_scale))
            maxima[row], sums[row] = largest, sum_lanes(total)


@njit(**OPTIONS)
def _softmax_dropout_backward(table: Any, scores: Any, grads: Any) -> None:
    """Compute the gradient w.r.t. q k^T, in place.

    Args:
        scores: q k^T; replaced by the probabilities after dropout.
        grads: gradient w.r.t. the probabilities after dropout; replaced by the result.
    """
    rows, queries, first, width = table[1], table[2], table[4], table[5]
    key, threshold, bias, numbers = table[6], table[7], as_float32(table[8]), as_float32(table[12])
    logit_scale, keep_scale, grad_scale = numbers[0], numbers[1], numbers[2]
    norms, deltas = as_float32(table[14]), as_float32(table[15])
    while True:
        start = take_task(table) * ROWS
        if start >= rows:
            return
        for i in range(start, min(rows, start + ROWS)):
            row, at = first * queries + i, i * width
            row_key, bias_at = derive_row_key(key, row), _locate_bias(table, row)
            norm, delta = splat(norms[row]), splat(deltas[row])
            for j in range(0, width, LANES):
                logit = load(scores, at + j) * splat(logit_scale) + load(bias, bias_at + j)
                p = _exp2_without_denormals(logit - norm)
                f = draw_factors(row_key, j, threshold, keep_scale)
                # The caller multiplies the probabilities after dropout by the gradient of the
                # output, which gives the gradient of v.
                store(scores, at + j, p * f)
                # The derivative of softmax is p (g - delta), where delta is the row's sum of p g.
                store(grads, at + j, p * splat(grad_scale) * (load(grads, at + j) * f - delta))


def softmax_dropout_float32(table: Any) -> None:
    """Apply softmax and dropout to float32 scores."""
    _softmax_dropout(table, as_float32(table[13]), allocate(LANES))


def softmax_dropout_bfloat16(table: Any) -> None:
    """Apply softmax and dropout to bfloat16 scores."""
    _softmax_dropout(table, as_bfloat16(table[13]), allocate(LANES))


def softmax_dropout_backward_float32(table: Any) -> None:
    """Compute the gradients w.r.t. float32 scores."""
    _softmax_dropout_backward(table, as_float32(table[13]), as_float32(table[16]))


def softmax_dropout_backward_bfloat16(table: Any) -> None:
    """Compute the gradients w.r.t. bfloat16 scores."""
    _softmax_dropout_backward(table, as_bfloat16(table[13]), as_bfloat16(table[16]))


FORWARD = {torch.float32: softmax_dropout_float32, torch.bfloat16: softmax_dropout_bfloat16}
BACKWARD = {
    torch.float32: softmax_dropout_backward_float32,
    torch.bfloat16: softmax_dropout_backward_bfloat16,
}


class _Inputs:
    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, key: Tensor,
        p: float, scale: float,
    ) -> None:  # fmt: skip
        self.heads, self.queries, self.keys = q.shape[1], q.shape[2], k.shape[2]
        padding = -self.keys % LANES
        # q, k and v have the shape (batch * heads, length, width).
        self.q = q.flatten(0, 1).contiguous()
        # Pad keys and values to whole vectors of keys. The padded keys get a bias of -inf.
        self.k, self.v = (
            nn.functional.pad(x, (0, 0, 0, padding)).flatten(0, 1).contiguous() for x in (k, v)
        )
        self.padded_keys = self.keys + padding
        self.bias = _make_bias(mask, self.keys, self.padded_keys)
        self.threshold, factor = compute_threshold(p)
        numbers = [scale * LOG2_E, factor, scale]
        self.numbers = torch.tensor(numbers, dtype=torch.float32, device="cpu")
        self.key = int(key)

    def allocate_scores(self) -> Tensor:
        size = self.queries * self.padded_keys * self.q.element_size()
        matrices = max(1, SCORE_BYTES * torch.get_num_threads() // max(1, size))
        # (matrices, queries, padded_keys)
        return self.q.new_empty(min(matrices, len(self.q)), self.queries, self.padded_keys)

    def split_chunks(self, size: int) -> Iterator[slice]:
        for start in range(0, len(self.q), size):
            yield slice(start, min(start + size, len(self.q)))

    def run(self, kernel: Any, chunk: slice, *tensors: Tensor) -> None:
        rows = (chunk.stop - chunk.start) * self.queries
        fields = [rows, self.queries, self.heads, chunk.start, self.padded_keys]
        fields += [self.key, self.threshold]
        # With a stride of 0, all reviews, heads or queries share a bias of size 1.
        sizes, strides = self.bias.shape[:3], self.bias.stride()[:3]
        strides = tuple(0 if n == 1 else s for n, s in zip(sizes, strides, strict=True))
        fields += [self.bias.data_ptr(), *strides, self.numbers.data_ptr()]
        # These are the fields from index 13 on.
        fields += [x.data_ptr() for x in tensors]
        run_kernel(kernel, -(-rows // ROWS), fields)


def _make_bias(mask: Tensor | None, keys: int, padded_keys: int) -> Tensor:
    """Convert the mask to a bias (batch or 1, heads or 1, queries or 1, padded_keys) in float32.

    The kernels add the bias to the logits. Both are multiplied by log2(e), because the kernels
    compute powers of two. The bias is -inf for masked keys and for padding.
    """
    if mask is None:
        bias = torch.zeros(1, 1, 1, keys, dtype=torch.float32, device="cpu")
    else:
        # `expand` repeats a mask along a dimension with a stride of 0. Keep one copy of it.
        for dim in range(3):
            if mask.stride(dim) == 0:
                mask = mask.narrow(dim, 0, 1)
        if mask.dtype == torch.bool:
            bias = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -math.inf)
        else:
            bias = mask.float() * LOG2_E
    return nn.functional.pad(bias, (0, padded_keys - keys), value=-math.inf).contiguous()


def _attend_fake(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, key: Tensor, p: float, scale: float
) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = q.shape
    norms = q.new_empty(batch * heads, queries, dtype=torch.float32)
    return q.new_empty(batch, heads, queries, v.shape[3]), norms


@register_op(_attend_fake, "attention")
def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, key: Tensor, p: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute the output of attention, and a log-sum-exp for the backward pass.

    Args:
        key: key of the dropout mask (see `draw_key`), not a key of attention.

    Returns:
        The output (batch, heads, queries, width), and the log-sum-exp (batch * heads, queries).
        The log-sum-exp of a query is log2(sum(2**s)) over its scores s, where
        s = log2(e) * (scale * q k^T + mask).
    """
    x = _Inputs(q, k, v, mask, key, p, scale)
    out = q.new_empty(len(x.q), x.queries, v.shape[3])
    maxima, sums = q.new_empty(2, len(x.q), x.queries, dtype=torch.float32)
    buffer = x.allocate_scores()
    for chunk in x.split_chunks(len(buffer)):
        # (matrices, queries, keys)
        scores = buffer[: chunk.stop - chunk.start]
        torch.bmm(x.q[chunk], x.k[chunk].transpose(1, 2), out=scores)
        x.run(FORWARD[q.dtype], chunk, scores, maxima, sums)
        torch.bmm(scores, x.v[chunk], out=out[chunk])
    # Dividing the output by the sums (matrices, queries) is cheaper than dividing the scores.
    out /= sums[..., None]
    return out.unflatten(0, q.shape[:2]), maxima + sums.log2_()


def _attend_backward_fake(
    grad: Tensor, out: Tensor, norms: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@register_op(_attend_backward_fake, "attention_backward")
def attend_backward(
    grad: Tensor, out: Tensor, norms: Tensor,
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, key: Tensor, p: float, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients w.r.t. q, k and v.

    out, norms: the output and the log-sum-exp that `attend` returned.
    """
    x = _Inputs(q, k, v, mask, key, p, scale)
    # delta, the sum over keys of probability times gradient, equals the dot product of a row's
    # output and the gradient of this output. Shape (batch, heads, queries).
    deltas = (grad.float() * out.float()).sum(-1).contiguous()
    grad = grad.flatten(0, 1).contiguous()
    grad_q, grad_k, grad_v = (torch.empty_like(y) for y in (x.q, x.k, x.v))
    buffers = x.allocate_scores(), x.allocate_scores()
    for chunk in x.split_chunks(len(buffers[0])):
        # `slopes` first contains the gradient of the probabilities, then the gradient of q k^T.
        scores, slopes = (buffer[: chunk.stop - chunk.start] for buffer in buffers)
        torch.bmm(x.q[chunk], x.k[chunk].transpose(1, 2), out=scores)
        torch.bmm(grad[chunk], x.v[chunk].transpose(1, 2), out=slopes)
        x.run(BACKWARD[q.dtype], chunk, scores, norms, deltas, slopes)
        torch.bmm(scores.transpose(1, 2), grad[chunk], out=grad_v[chunk])
        torch.bmm(slopes, x.k[chunk], out=grad_q[chunk])
        torch.bmm(slopes.transpose(1, 2), x.q[chunk], out=grad_k[chunk])
    grads = (grad_q, grad_k[:, : x.keys], grad_v[:, : x.keys])
    grad_q, grad_k, grad_v = (g.contiguous().unflatten(0, q.shape[:2]) for g in grads)
    return grad_q, grad_k, grad_v


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        *tensors, ctx.p, ctx.scale = inputs
        out, norms = call_below_autograd(attend, *inputs)
        ctx.save_for_backward(out, norms, *tensors)
        ctx.mark_non_differentiable(norms)
        ctx.set_materialize_grads(False)
        return out, norms

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        grads = attend_backward(grad, *ctx.saved_tensors, ctx.p, ctx.scale)
        return (*grads, None, None, None, None)


register_autograd(attend, _Attend)
