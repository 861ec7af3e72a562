"""The scan of Mamba-2 as matrix products, chunk by chunk, on any device.

Within a chunk the scan is a masked product of queries C, keys B and values dt x; between chunks it
hands on one state per head (Dao & Gu, 2024, section 6, https://arxiv.org/abs/2405.21060). Shapes:
K chunks of all rows, T steps in a chunk, G groups, H heads, V = (H / G) head_dim, N d_state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = 64  # products of this size are efficient, and the mask of a chunk stays small


class Decay(NamedTuple):
    """What is left of a signal: from the chunk's start on, to its end, over all of it."""

    total: Tensor  # (K, H)
    from_start: Tensor  # (K, T, H)
    to_end: Tensor  # (K, T, H)
    between: Tensor  # (K, H, T, T): from step j to step i, 0 above the diagonal


def _wide(x: Tensor) -> torch.dtype:
    """Return the type for sums that may all but cancel, such as the gradient of A."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _decay(dt: Tensor, A: Tensor) -> Decay:
    wide = _wide(dt)
    sums = (dt.to(wide) * A.to(wide)).cumsum(1)
    last = sums[:, -1:]
    high = sums.to(dt.dtype)  # a long sum has too few digits left for the difference of two
    low = (sums - high).to(dt.dtype)
    high, low = (part.transpose(1, 2).contiguous() for part in (high, low))
    between = high[..., :, None] - high[..., None, :]
    between += low[..., :, None]
    between -= low[..., None, :]
    return Decay(
        last[:, 0].exp().to(dt.dtype),
        sums.exp().to(dt.dtype),
        (last - sums).exp().to(dt.dtype),
        between.exp_().tril_(),
    )


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(K, T, H, head_dim) as (K, G, T, V)."""
    return x.reshape(*x.shape[:2], groups, -1).transpose(1, 2)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(K, G, T, V) as (K, T, H, head_dim)."""
    x = x.transpose(1, 2)
    return x.reshape(*x.shape[:2], heads, -1)


def _pass_on(local: Tensor, total: Tensor, rows: int, reverse: bool) -> Tensor:
    """Turn what a chunk adds, (K, G, N, V), into what reaches it from those before (or after)."""
    local = local.view(rows, -1, *local.shape[1:])
    total = total.view(rows, local.shape[1], 1, total.shape[1], 1)
    reached = torch.empty_like(local)
    state = torch.zeros_like(local[:, 0])
    order = range(local.shape[1])
    for k in reversed(order) if reverse else order:
        reached[:, k] = state
        heads = state.unflatten(-1, (total.shape[3] // state.shape[1], -1))
        kept = heads * total[:, k].reshape(rows, state.shape[1], 1, -1, 1)
        state = kept.flatten(-2) + local[:, k]
    return reached.flatten(0, 1)


class ChunkedSSD(torch.autograd.Function):
    """x (K, T, H, P), dt (K, T, H), A (H,), B, C (K, G, T, N) of `rows` rows, to y like x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, rows: int
    ) -> Tensor:
        heads, groups = x.shape[2], B.shape[1]
        decay = _decay(dt, A)
        values = x * dt[..., None]
        to_end = _by_group(values * decay.to_end[..., None], groups)
        before = _pass_on(B.transpose(2, 3) @ to_end, decay.total, rows, reverse=False)
        y = _by_head(C @ before, heads) * decay.from_start[..., None]
        scores = decay.between.unflatten(1, (groups, -1)) * (C @ B.transpose(2, 3))[:, :, None]
        inside = scores.flatten(1, 2) @ values.transpose(1, 2).contiguous()
        ctx.save_for_backward(x, dt, A, B, C, before)
        ctx.rows = rows
        return y.add_(inside.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, before = ctx.saved_tensors
        heads, groups = x.shape[2], B.shape[1]
        decay = _decay(dt, A)
        values = x * dt[..., None]
        grad_values, grad_B, grad_C, grad_log = _inside_back(values, B, C, decay, grad)

        started = _by_group(grad * decay.from_start[..., None], groups)
        grad_C += started @ before.transpose(2, 3)
        later = _pass_on(C.transpose(2, 3) @ started, decay.total, ctx.rows, reverse=True)
        to_end = values * decay.to_end[..., None]
        grad_B += _by_group(to_end, groups) @ later.transpose(2, 3)
        from_later = _by_head(B @ later, heads)
        grad_values += from_later * decay.to_end[..., None]

        # A step's decay acts on all that passes it: what came in before and is read after.
        read = (_by_head(C @ before, heads) * _by_head(started, heads)).sum(-1)  # (K, T, H)
        grad_log += read.flip(1).cumsum(1).flip(1)
        sent = (from_later * to_end).sum(-1)
        grad_log += sent.cumsum(1) - sent
        through = (later * before).unflatten(-1, (heads // groups, -1)).sum((2, 4)).flatten(1)
        grad_log += (through * decay.total)[:, None]

        grad_dt = (grad_log * A).to(dt.dtype) + (grad_values * x).sum(-1)
        grad_A = (grad_log * dt).sum((0, 1)).to(A.dtype)
        return grad_values * dt[..., None], grad_dt, grad_A, grad_B, grad_C, None


def _inside_back(
    values: Tensor, B: Tensor, C: Tensor, decay: Decay, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of values, B, C and, wide, of dt A (K, T, H) from within the chunks."""
    groups = B.shape[1]
    grad, values = (part.transpose(1, 2).contiguous() for part in (grad, values))
    products = (C @ B.transpose(2, 3))[:, :, None]
    between = decay.between.unflatten(1, (groups, -1))
    scores = (between * products).flatten(1, 2)
    grad_values = (scores.transpose(2, 3) @ grad).transpose(1, 2)
    grad_scores = grad @ values.transpose(2, 3)  # (K, H, T, T)
    grad_products = (grad_scores.unflatten(1, (groups, -1)) * between).sum(2)
    grad_log = _passing(scores.mul_(grad_scores)).transpose(1, 2).contiguous()
    return grad_values, grad_products.transpose(2, 3) @ C, grad_products @ B, grad_log


def _passing(acts: Tensor) -> Tensor:
    """Sum, for each step, what earlier steps do to it and later ones: (K, H, T), wide.

    acts: (K, H, T, T), of step j on step i, 0 above the diagonal.
    """
    if _wide(acts) == torch.float64:
        own = acts.sum(3, dtype=torch.float64) - acts.sum(2, dtype=torch.float64)
        return own.flip(2).cumsum(2).flip(2)
    # In float32 a difference of such sums would lose its digits.
    earlier = torch.ones(acts.shape[2:], dtype=acts.dtype, device=acts.device).triu_(1)
    return (acts @ earlier).tril_().sum(2)


def ssd_torch(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """As `ssd_reference`, with few and large operations."""
    rows, length = x.shape[:2]
    steps = min(CHUNK, length)
    missing = -length % steps
    if missing:  # a step of size 0 changes nothing
        x, B, C = (nn.functional.pad(part, (0, 0, 0, 0, 0, missing)) for part in (x, B, C))
        dt = nn.functional.pad(dt, (0, 0, 0, missing))
    x, dt, B, C = (part.reshape(-1, steps, *part.shape[2:]) for part in (x, dt, B, C))
    y = ChunkedSSD.apply(x, dt, A, B.transpose(1, 2), C.transpose(1, 2), rows)
    return y.reshape(rows, -1, *y.shape[2:])[:, :length]
