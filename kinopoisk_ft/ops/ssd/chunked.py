"""Compute the scan of Mamba-2 as matrix products of chunks, on any device.

Within a chunk, the scan is computed like masked attention with queries C, keys B and values dt x.
Each chunk passes one state per head to the next chunk (Dao & Gu, 2024, section 6,
https://arxiv.org/abs/2405.21060).

Shapes use these letters: K is the number of chunks in all rows, T the number of steps per chunk,
G the number of groups, H the number of heads, P is head_dim, N is d_state, and V is (H / G) * P.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan
from torch.autograd.function import once_differentiable

# Steps per chunk. Matrix products of this size are efficient, and `Decay.between` stays small.
CHUNK = 64


class Decay(NamedTuple):
    """Factors by which the state decays within a chunk."""

    # (K, H): over the whole chunk.
    total: Tensor
    # (K, T, H): from the start of the chunk to each step.
    from_start: Tensor
    # (K, T, H): from each step to the end of the chunk.
    to_end: Tensor
    # (K, H, T, T): element (i, j) is the factor from step j to step i; 0 if j > i.
    between: Tensor


def _wide_dtype(x: Tensor) -> torch.dtype:
    # Sums whose terms nearly cancel need float64, but MPS devices do not support float64.
    return torch.float32 if x.device.type == "mps" else torch.float64


def _compute_decay(dt: Tensor, A: Tensor) -> Decay:
    wide = _wide_dtype(dt)
    # (K, T, H): logarithm of the decay from the start of the chunk.
    sums = (dt.to(wide) * A.to(wide)).cumsum(1)
    last = sums[:, -1:]
    # `between` needs differences of long sums, which are inaccurate in float32. To avoid (T, T)
    # matrices in float64, split each sum into a float32 part and the rest, and subtract both.
    high = sums.to(dt.dtype)
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


def _group_heads(x: Tensor, groups: int) -> Tensor:
    # (K, T, H, P) to (K, G, T, V)
    return x.reshape(*x.shape[:2], groups, -1).transpose(1, 2)


def _ungroup_heads(x: Tensor, heads: int) -> Tensor:
    # (K, G, T, V) to (K, T, H, P)
    x = x.transpose(1, 2)
    return x.reshape(*x.shape[:2], heads, -1)


def _pass_states(local: Tensor, total: Tensor, rows: int, reverse: bool) -> Tensor:
    # For each chunk, sum the decayed contributions of all earlier chunks of the row; if `reverse`,
    # of all later chunks. local (K, G, N, V) is the contribution of each chunk, and total (K, H) is
    # the decay over each chunk.
    # (rows, chunks, G, N, V) and (rows, chunks, 1, H, 1)
    local = local.view(rows, -1, *local.shape[1:])
    total = total.view(rows, local.shape[1], 1, total.shape[1], 1)
    groups = local.shape[2]

    def step(state: Tensor, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        local_k, total_k = inputs
        # (rows, G, N, H / G, P): each head has its own decay.
        heads = state.unflatten(-1, (total.shape[3] // groups, -1))
        decayed = heads * total_k.reshape(rows, groups, 1, -1, 1)
        return decayed.flatten(-2) + local_k, state.clone()

    state = torch.zeros_like(local[:, 0])
    if torch.compiler.is_exporting():
        # torch.export unrolls loops of Python, so that a graph with them has a fixed length.
        reached = scan(step, state, (local.transpose(0, 1), total.transpose(0, 1)))[1]
        return reached.transpose(0, 1).flatten(0, 1)
    reached = torch.empty_like(local)
    order = range(local.shape[1])
    for k in reversed(order) if reverse else order:
        state, reached[:, k] = step(state, (local[:, k], total[:, k]))
    return reached.flatten(0, 1)


def _compute_chunks(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """Return y (K, T, H, P) and the state before each chunk, (K, G, N, V)."""
    heads, groups = x.shape[2], B.shape[1]
    decay = _compute_decay(dt, A)
    values = x * dt[..., None]
    # The values, decayed to the end of their chunk (K, G, T, V).
    to_end = _group_heads(values * decay.to_end[..., None], groups)
    before = _pass_states(B.transpose(2, 3) @ to_end, decay.total, rows, reverse=False)
    # The output is the sum of the contributions of earlier chunks and of the same chunk.
    y = _ungroup_heads(C @ before, heads) * decay.from_start[..., None]
    # (K, G, H / G, T, T), then (K, H, T, P)
    scores = decay.between.unflatten(1, (groups, -1)) * (C @ B.transpose(2, 3))[:, :, None]
    inside = scores.flatten(1, 2) @ values.transpose(1, 2).contiguous()
    return y.add_(inside.transpose(1, 2)), before


class ChunkedSSD(torch.autograd.Function):
    """The scan of Mamba-2 as an autograd function.

    The inputs are x (K, T, H, P), dt (K, T, H), A (H,), B (K, G, T, N), C (K, G, T, N) and `rows`,
    the batch size. The output is y (K, T, H, P). The top of this file explains the letters.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, rows: int
    ) -> Tensor:
        y, before = _compute_chunks(x, dt, A, B, C, rows)
        ctx.save_for_backward(x, dt, A, B, C, before)
        ctx.rows = rows
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, before = ctx.saved_tensors
        heads, groups = x.shape[2], B.shape[1]
        decay = _compute_decay(dt, A)
        values = x * dt[..., None]
        grad_values, grad_B, grad_C, grad_log = _backpropagate_inside(values, B, C, decay, grad)

        started = _group_heads(grad * decay.from_start[..., None], groups)
        grad_C += started @ before.transpose(2, 3)
        # The gradient of the state after each chunk, (K, G, N, V).
        later = _pass_states(C.transpose(2, 3) @ started, decay.total, ctx.rows, reverse=True)
        to_end = values * decay.to_end[..., None]
        grad_B += _group_heads(to_end, groups) @ later.transpose(2, 3)
        from_later = _ungroup_heads(B @ later, heads)
        grad_values += from_later * decay.to_end[..., None]

        # The decay of a step scales every signal that passes the step, so its gradient sums over
        # these signals. From earlier chunks to this step or later steps of the chunk, (K, T, H):
        read = (_ungroup_heads(C @ before, heads) * _ungroup_heads(started, heads)).sum(-1)
        grad_log += read.flip(1).cumsum(1).flip(1)
        # From earlier steps of the chunk to later chunks:
        sent = (from_later * to_end).sum(-1)
        grad_log += sent.cumsum(1) - sent
        # From earlier chunks to later chunks:
        through = (later * before).unflatten(-1, (heads // groups, -1)).sum((2, 4)).flatten(1)
        grad_log += (through * decay.total)[:, None]

        grad_dt = (grad_log * A).to(dt.dtype) + (grad_values * x).sum(-1)
        grad_A = (grad_log * dt).sum((0, 1)).to(A.dtype)
        return grad_values * dt[..., None], grad_dt, grad_A, grad_B, grad_C, None


def _backpropagate_inside(
    values: Tensor, B: Tensor, C: Tensor, decay: Decay, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    groups = B.shape[1]
    grad, values = (part.transpose(1, 2).contiguous() for part in (grad, values))
    products = (C @ B.transpose(2, 3))[:, :, None]
    between = decay.between.unflatten(1, (groups, -1))
    scores = (between * products).flatten(1, 2)
    grad_values = (scores.transpose(2, 3) @ grad).transpose(1, 2)
    # (K, H, T, T)
    grad_scores = grad @ values.transpose(2, 3)
    grad_products = (grad_scores.unflatten(1, (groups, -1)) * between).sum(2)
    # (K, T, H) in `_wide_dtype`: the gradient w.r.t. dt A.
    grad_log = _sum_across_steps(scores.mul_(grad_scores)).transpose(1, 2).contiguous()
    return grad_values, grad_products.transpose(2, 3) @ C, grad_products @ B, grad_log


def _sum_across_steps(effects: Tensor) -> Tensor:
    """For each step t, sum the elements (i, j) of `effects` with j < t <= i.

    Args:
        effects: (K, H, T, T). Element (i, j) is the effect of step j on step i; 0 if j > i.

    Returns:
        (K, H, T).
    """
    if _wide_dtype(effects) == torch.float64:
        own = effects.sum(3, dtype=torch.float64) - effects.sum(2, dtype=torch.float64)
        return own.flip(2).cumsum(2).flip(2)
    # In float32, a difference of such sums would be inaccurate, so sum only the effects themselves.
    # (T, T): 1 where step j is earlier than step t.
    earlier = torch.ones(effects.shape[2:], dtype=effects.dtype, device=effects.device).triu_(1)
    return (effects @ earlier).tril_().sum(2)


def ssd_torch(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Compute Mamba-2's scan in chunks. See `ssd_reference` for the arguments."""
    rows, length = x.shape[:2]
    # An exported graph is the same for every length.
    exporting = torch.compiler.is_exporting()
    steps = CHUNK if exporting else min(CHUNK, length)
    # Zero-pad the length to whole chunks.
    missing = -length % steps
    if exporting or missing:
        # With dt = 0, a step does not change the state.
        x, B, C = (nn.functional.pad(part, (0, 0, 0, 0, 0, missing)) for part in (x, B, C))
        dt = nn.functional.pad(dt, (0, 0, 0, missing))
    # (K, T, ...)
    x, dt, B, C = (part.reshape(-1, steps, *part.shape[2:]) for part in (x, dt, B, C))
    inputs = (x, dt, A, B.transpose(1, 2), C.transpose(1, 2), rows)
    y = _compute_chunks(*inputs)[0] if exporting else ChunkedSSD.apply(*inputs)
    return y.reshape(rows, -1, *y.shape[2:])[:, :length]
