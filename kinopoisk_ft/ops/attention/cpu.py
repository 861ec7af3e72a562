"""Attention with dropout on a CPU as PyTorch operators: matrix products and numba kernels.

Scores are made for as many matrices as stay in cache, and again in the backward pass: as in
FlashAttention (Dao et al., 2022, https://arxiv.org/abs/2205.14135) what is kept of them is one
number a row, so that no (batch, heads, queries, keys) tensor exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from kinopoisk_ft.ops.dropout.cpu import rate
from kinopoisk_ft.ops.simd.custom_op import below_autograd, differentiate, operator
from kinopoisk_ft.ops.simd.kernel_cache import OPTIONS
from kinopoisk_ft.ops.simd.load_store import read, scratch, write
from kinopoisk_ft.ops.simd.math import exp2
from kinopoisk_ft.ops.simd.random import factors, row_key
from kinopoisk_ft.ops.simd.register import LANES, larger, load, splat, store, total
from kinopoisk_ft.ops.simd.threads import bfloats, compiled, floats, share, take

ROWS = 16
_f = np.float32
_LOWEST = _f(-np.inf)
_TINY = _f(2**-126)


@njit(forceinline=True)
def _bias_row(a: Any, row: Any) -> Any:
    """Return where the bias of a row, counted from the first of the batch, starts."""
    queries, heads = a[2], a[3]
    matrix = row // queries
    return matrix // heads * a[9] + matrix % heads * a[10] + row % queries * a[11]


@njit(forceinline=True)
def _power(x: Any) -> Any:
    """2**x, and 0 from 2**-126 down: what is masked must not slow products down as denormals."""
    return larger(splat(_f(0)), exp2(x) - splat(_TINY))


@njit(**OPTIONS)
def _highest(
    scores: Any, at: int, bias: Any, bias_at: int, width: int, rate: Any, room: Any
) -> Any:
    """Return the largest logit of a row."""
    top = splat(_LOWEST)
    for j in range(0, width, LANES):
        top = larger(read(scores, at + j) * splat(rate) + load(bias, bias_at + j), top)
    store(room, 0, top)
    best = room[0]
    for j in range(1, LANES):
        best = max(best, room[j])
    return best


@njit(**OPTIONS)
def _weigh(a: Any, scores: Any, room: Any) -> None:
    """Put exp2(logit - highest) times 0 or the scale over the scores; keep highest and sum."""
    rows, queries, first, width, key, threshold = a[1], a[2], a[4], a[5], a[6], a[7]
    bias, rate, scale = floats(a[8]), floats(a[12])[0], floats(a[12])[1]
    highest, sums = floats(a[14]), floats(a[15])
    while True:
        start = take(a) * ROWS
        if start >= rows:
            return
        for i in range(start, min(rows, start + ROWS)):
            row, at = first * queries + i, i * width
            own, bias_at = row_key(key, row), _bias_row(a, row)
            top = _highest(scores, at, bias, bias_at, width, rate, room)
            if top == _LOWEST:  # nothing to attend to: the output and the gradients are zero
                added = splat(_f(0))
                for j in range(0, width, LANES):
                    added = added + read(scores, at + j) + load(bias, bias_at + j)
                    write(scores, at + j, splat(_f(0)))
                highest[row], sums[row] = -_LOWEST, _f(1)
                if np.isnan(total(added)):  # or nothing that is a number, which must show
                    highest[row], sums[row] = _f(np.nan), _f(np.nan)
                continue
            added = splat(_f(0))
            for j in range(0, width, LANES):
                logit = read(scores, at + j) * splat(rate) + load(bias, bias_at + j)
                e = _power(logit - splat(top))
                added = added + e
                write(scores, at + j, e * factors(own, j, threshold, scale))
            highest[row], sums[row] = top, total(added)


@njit(**OPTIONS)
def _weigh_back(a: Any, scores: Any, grads: Any) -> None:
    """Put the dropped probabilities over the scores, and the scores' gradient over theirs."""
    rows, queries, first, width, key, threshold = a[1], a[2], a[4], a[5], a[6], a[7]
    bias, rate, scale, slope = floats(a[8]), floats(a[12])[0], floats(a[12])[1], floats(a[12])[2]
    norms, deltas = floats(a[14]), floats(a[15])
    while True:
        start = take(a) * ROWS
        if start >= rows:
            return
        for i in range(start, min(rows, start + ROWS)):
            row, at = first * queries + i, i * width
            own, bias_at = row_key(key, row), _bias_row(a, row)
            norm, delta = splat(norms[row]), splat(deltas[row])
            for j in range(0, width, LANES):
                logit = read(scores, at + j) * splat(rate) + load(bias, bias_at + j)
                p = _power(logit - norm)
                f = factors(own, j, threshold, scale)
                write(scores, at + j, p * f)
                write(grads, at + j, p * splat(slope) * (read(grads, at + j) * f - delta))


def weigh_float32(a: Any) -> None:
    """Forward, on float32 scores."""
    _weigh(a, floats(a[13]), scratch(LANES))


def weigh_bfloat16(a: Any) -> None:
    """Forward, on bfloat16 scores."""
    _weigh(a, bfloats(a[13]), scratch(LANES))


def weigh_back_float32(a: Any) -> None:
    """Backward, on float32 scores."""
    _weigh_back(a, floats(a[13]), floats(a[16]))


def weigh_back_bfloat16(a: Any) -> None:
    """Backward, on bfloat16 scores."""
    _weigh_back(a, bfloats(a[13]), bfloats(a[16]))


FORWARD = {
    torch.float32: weigh_float32,
    torch.bfloat16: weigh_bfloat16,
}
BACKWARD = {
    torch.float32: weigh_back_float32,
    torch.bfloat16: weigh_back_bfloat16,
}
CACHE = 2**19  # bytes of scores a thread: the backward pass holds two such in a core's L2 cache
LOG2_E = 1 / math.log(2)


class _Inputs:
    """Queries, keys and values as (batch * heads, length, width), and what the kernels read."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, key: Tensor,
        p: float, scale: float,
    ) -> None:  # fmt: skip
        self.heads, self.queries, self.keys = q.shape[1], q.shape[2], k.shape[2]
        extra = -self.keys % LANES
        self.q = q.flatten(0, 1).contiguous()
        self.k, self.v = (nn.functional.pad(x, (0, 0, 0, extra)).flatten(0, 1).contiguous()
                          for x in (k, v))  # fmt: skip
        self.width = self.keys + extra
        self.bias = _bias(mask, self.keys, self.width)
        self.threshold, factor = rate(p)
        self.numbers = torch.tensor([scale * LOG2_E, factor, scale])
        self.key = int(key)

    def scores(self) -> Tensor:
        """Return room for the scores of the matrices of one chunk."""
        size = self.queries * self.width * self.q.element_size()
        matrices = max(1, CACHE * torch.get_num_threads() // max(1, size))
        return self.q.new_empty(min(matrices, len(self.q)), self.queries, self.width)

    def chunks(self, size: int) -> Iterator[slice]:
        """Yield which matrices are done at a time."""
        for start in range(0, len(self.q), size):
            yield slice(start, min(start + size, len(self.q)))

    def share(self, kernel: Any, part: slice, *others: Tensor) -> None:
        """Run a kernel on a chunk, with the tensors that it reads and writes."""
        rows = (part.stop - part.start) * self.queries
        fields = [rows, self.queries, self.heads, part.start, self.width, self.key, self.threshold]
        sizes, steps = self.bias.shape[:3], self.bias.stride()[:3]
        steps = tuple(0 if n == 1 else s for n, s in zip(sizes, steps, strict=True))
        fields += [self.bias.data_ptr(), *steps, self.numbers.data_ptr()]
        fields += [x.data_ptr() for x in others]
        share(compiled(kernel), -(-rows // ROWS), fields)


def _bias(mask: Tensor | None, keys: int, width: int) -> Tensor:
    """Return what is added to the logits, (batch or 1, heads or 1, queries or 1, width) float32."""
    if mask is None:
        bias = torch.zeros(1, 1, 1, keys)
    else:
        for dim in range(3):
            if mask.stride(dim) == 0:
                mask = mask.narrow(dim, 0, 1)
        if mask.dtype == torch.bool:
            bias = torch.zeros(mask.shape).masked_fill_(~mask, -math.inf)
        else:
            bias = mask.float() * LOG2_E
    return nn.functional.pad(bias, (0, width - keys), value=-math.inf).contiguous()


def _attend_fake(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, key: Tensor, p: float, scale: float
) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = q.shape
    norms = q.new_empty(batch * heads, queries, dtype=torch.float32)
    return q.new_empty(batch, heads, queries, v.shape[3]), norms


@operator(_attend_fake, "attention")
def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, key: Tensor, p: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the output (batch, heads, queries, width) and log2 of the exponentials' sums."""
    x = _Inputs(q, k, v, mask, key, p, scale)
    out = q.new_empty(len(x.q), x.queries, v.shape[3])
    highest, sums = torch.empty(2, len(x.q), x.queries)
    room = x.scores()
    for part in x.chunks(len(room)):
        scores = room[: part.stop - part.start]
        torch.bmm(x.q[part], x.k[part].transpose(1, 2), out=scores)
        x.share(FORWARD[q.dtype], part, scores, highest, sums)
        torch.bmm(scores, x.v[part], out=out[part])
    out /= sums[..., None]
    return out.unflatten(0, q.shape[:2]), highest + sums.log2_()


def _attend_backward_fake(
    grad: Tensor, out: Tensor, norms: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@operator(_attend_backward_fake, "attention_backward")
def attend_backward(
    grad: Tensor, out: Tensor, norms: Tensor,
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, key: Tensor, p: float, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of q, k and v."""
    x = _Inputs(q, k, v, mask, key, p, scale)
    # The sum over keys of probability times gradient, as a product of the outputs.
    deltas = (grad.float() * out.float()).sum(-1).contiguous()
    grad = grad.flatten(0, 1).contiguous()
    grad_q, grad_k, grad_v = (torch.empty_like(y) for y in (x.q, x.k, x.v))
    rooms = x.scores(), x.scores()
    for part in x.chunks(len(rooms[0])):
        scores, slopes = (room[: part.stop - part.start] for room in rooms)
        torch.bmm(x.q[part], x.k[part].transpose(1, 2), out=scores)
        torch.bmm(grad[part], x.v[part].transpose(1, 2), out=slopes)
        x.share(BACKWARD[q.dtype], part, scores, norms, deltas, slopes)
        torch.bmm(scores.transpose(1, 2), grad[part], out=grad_v[part])
        torch.bmm(slopes, x.k[part], out=grad_q[part])
        torch.bmm(slopes.transpose(1, 2), x.q[part], out=grad_k[part])
    grads = (grad_q, grad_k[:, : x.keys], grad_v[:, : x.keys])
    grad_q, grad_k, grad_v = (g.contiguous().unflatten(0, q.shape[:2]) for g in grads)
    return grad_q, grad_k, grad_v


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        *tensors, ctx.p, ctx.scale = inputs
        out, norms = below_autograd(attend, *inputs)
        ctx.save_for_backward(out, norms, *tensors)
        ctx.mark_non_differentiable(norms)
        ctx.set_materialize_grads(False)
        return out, norms

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        grads = attend_backward(grad, *ctx.saved_tensors, ctx.p, ctx.scale)
        return (*grads, None, None, None, None)


differentiate(attend, _Attend)
