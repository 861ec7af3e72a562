"""The selective scan in plain PyTorch, chunk by chunk, on any device and in any float type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = 16


def _decay_and_inflow(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as (batch, steps, d_state, d_inner): long rows suit element-wise operations."""
    decay = torch.exp(delta[:, :, None] * A)
    return decay, (delta * u)[:, :, None] * B[..., None]


def _over_states(weight: Tensor, states: Tensor) -> Tensor:
    return torch.matmul(weight[:, :, None], states)[:, :, 0]  # (batch, steps, d_inner)


def _recur(decay: Tensor, inflow: Tensor, h: Tensor) -> Tensor:
    """Turn the inflow into states, in place: h_t = decay_t h_{t-1} + inflow_t."""
    for t in range(inflow.shape[1]):
        h = inflow[:, t].addcmul_(decay[:, t], h)
    return inflow


def _recur_back(decay: Tensor, grad: Tensor, carried: Tensor) -> Tensor:
    """Collect the states' gradient from later steps, in place; return what the chunk hands down."""
    for t in range(grad.shape[1] - 1, -1, -1):
        carried = grad[:, t].add_(carried) * decay[:, t]
    return carried


class ChunkedScan(torch.autograd.Function):
    """Scan without skip, gate or softplus; saves the states at the chunk starts alone."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        A = A.t().contiguous()
        h = u.new_zeros(u.shape[0], *A.shape)
        outputs, marks = [], []
        for part in _chunks(u, delta, B, C):
            marks.append(h)
            u_c, delta_c, B_c, C_c = part
            states = _recur(*_decay_and_inflow(u_c, delta_c, A, B_c), h)
            outputs.append(_over_states(C_c, states))
            h = states[:, -1].clone()
        ctx.save_for_backward(u, delta, A, B, C, torch.stack(marks))
        return torch.cat(outputs, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, marks = ctx.saved_tensors
        carried, grad_A = torch.zeros_like(marks[0]), torch.zeros_like(A)
        parts = []
        for part, h in reversed(list(zip(_chunks(u, delta, B, C, grad), marks, strict=True))):
            u_c, delta_c, B_c, C_c, grad_c = part
            *grads, from_A, carried = _chunk_back(u_c, delta_c, B_c, C_c, grad_c, A, h, carried)
            grad_A += from_A
            parts.append(grads)
        grad_u, grad_delta, grad_B, grad_C = (
            torch.cat(pieces, dim=1) for pieces in zip(*reversed(parts), strict=True)
        )
        return grad_u, grad_delta, grad_A.t(), grad_B, grad_C


def _chunks(*tensors: Tensor) -> list[tuple[Any, ...]]:
    return list(zip(*(x.split(CHUNK, dim=1) for x in tensors), strict=True))


def _chunk_back(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    grad: Tensor,
    A: Tensor,
    h: Tensor,
    carried: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of u, delta, B, C, A, and of the state before the chunk."""
    decay, inflow = _decay_and_inflow(u, delta, A, B)
    states = _recur(decay, inflow, h)
    grad_C = (states * grad[:, :, None]).sum(-1)
    grad_h = grad[:, :, None] * C[..., None]
    carried = _recur_back(decay, grad_h, carried)
    grad_B = (grad_h * (delta * u)[:, :, None]).sum(-1)
    grad_inflow = _over_states(B, grad_h)
    before = torch.cat([h[:, None], states[:, :-1]], dim=1)
    grad_exponent = grad_h.mul_(decay).mul_(before)
    grad_delta = (grad_exponent * A).sum(2) + grad_inflow * u
    grad_A = (grad_exponent * delta[:, :, None]).sum((0, 1))
    return grad_inflow * delta, grad_delta, grad_B, grad_C, grad_A, carried


def selective_scan_torch(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """As `selective_scan_reference`, with few and large operations."""
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = nn.functional.softplus(delta)
    y = ChunkedScan.apply(u, delta, A, B, C)
    if D is not None:
        y = y + D * u
    return y if z is None else y * nn.functional.silu(z)
