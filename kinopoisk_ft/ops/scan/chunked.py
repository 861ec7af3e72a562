"""Compute the selective scan in plain PyTorch, in chunks, for any device and float dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan
from torch.autograd.function import once_differentiable

# Time steps whose states (batch, steps, d_state, d_inner) are in memory at the same time.
CHUNK = 16


def _compute_decay_and_inflow(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor
) -> tuple[Tensor, Tensor]:
    # (batch, steps, d_state, d_inner). The channels are the last dimension, because element-wise
    # operations are faster on long rows.
    decay = torch.exp(delta[:, :, None] * A)
    return decay, (delta * u)[:, :, None] * B[..., None]


def _contract_states(weight: Tensor, states: Tensor) -> Tensor:
    # (batch, steps, 1, d_state) @ (batch, steps, d_state, d_inner)
    return torch.matmul(weight[:, :, None], states)[:, :, 0]


def _run_recurrence(decay: Tensor, inflow: Tensor, h: Tensor) -> Tensor:
    """Replace each inflow_t in place by the state h_t = decay_t h_{t-1} + inflow_t.

    decay, inflow: (batch, steps, d_state, d_inner). `h` is the state before the first step.
    """
    for t in range(inflow.shape[1]):
        h = inflow[:, t].addcmul_(decay[:, t], h)
    return inflow


def _run_recurrence_backward(decay: Tensor, grad: Tensor, grad_h: Tensor) -> Tensor:
    for t in range(grad.shape[1] - 1, -1, -1):
        # Add the gradient from later steps. Then grad_h is the gradient of the state before step t.
        grad_h = grad[:, t].add_(grad_h) * decay[:, t]
    return grad_h


class ChunkedScan(torch.autograd.Function):
    """The selective scan without the skip connection D, the gate z and the softplus of delta.

    Only the state before each chunk is saved. The backward pass recomputes all other states.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        # (d_state, d_inner)
        A = A.t().contiguous()
        h = u.new_zeros(u.shape[0], *A.shape)
        outputs, saved = [], []
        for u_c, delta_c, B_c, C_c in _split_chunks(u, delta, B, C):
            saved.append(h)
            states = _run_recurrence(*_compute_decay_and_inflow(u_c, delta_c, A, B_c), h)
            outputs.append(_contract_states(C_c, states))
            # A copy, because a view would keep the states of the whole chunk in memory.
            h = states[:, -1].clone()
        ctx.save_for_backward(u, delta, A, B, C, torch.stack(saved))
        return torch.cat(outputs, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, saved = ctx.saved_tensors
        grad_h, grad_A = torch.zeros_like(saved[0]), torch.zeros_like(A)
        chunks = list(zip(_split_chunks(u, delta, B, C, grad), saved, strict=True))
        chunk_grads = []
        for (u_c, delta_c, B_c, C_c, grad_c), h in reversed(chunks):
            *grads, chunk_grad_A, grad_h = _backpropagate_chunk(
                u_c, delta_c, B_c, C_c, grad_c, A, h, grad_h
            )
            grad_A += chunk_grad_A
            chunk_grads.append(grads)
        grad_u, grad_delta, grad_B, grad_C = (
            torch.cat(parts, dim=1) for parts in zip(*reversed(chunk_grads), strict=True)
        )
        return grad_u, grad_delta, grad_A.t(), grad_B, grad_C


def _split_chunks(*tensors: Tensor) -> list[tuple[Any, ...]]:
    return list(zip(*(x.split(CHUNK, dim=1) for x in tensors), strict=True))


def _backpropagate_chunk(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    grad: Tensor,
    A: Tensor,
    h: Tensor,
    grad_h: Tensor,
) -> tuple[Tensor, ...]:
    # h is the state before the chunk, and grad_h is the gradient of the state after the chunk.
    # Recompute the states of the chunk from h, because the forward pass saved only h.
    decay, inflow = _compute_decay_and_inflow(u, delta, A, B)
    states = _run_recurrence(decay, inflow, h)
    # (batch, steps, d_state)
    grad_C = (states * grad[:, :, None]).sum(-1)
    # (batch, steps, d_state, d_inner)
    grad_states = grad[:, :, None] * C[..., None]
    grad_h = _run_recurrence_backward(decay, grad_states, grad_h)
    grad_B = (grad_states * (delta * u)[:, :, None]).sum(-1)
    grad_inflow = _contract_states(B, grad_states)
    # The state before each step, (batch, steps, d_state, d_inner).
    before = torch.cat([h[:, None], states[:, :-1]], dim=1)
    # Gradient of the exponent delta A of the decay.
    grad_exponent = grad_states.mul_(decay).mul_(before)
    grad_delta = (grad_exponent * A).sum(2) + grad_inflow * u
    grad_A = (grad_exponent * delta[:, :, None]).sum((0, 1))
    return grad_inflow * delta, grad_delta, grad_B, grad_C, grad_A, grad_h


def scan_as_graph(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Compute the same as `ChunkedScan.forward`, with an operator that torch.export supports.

    torch.export unrolls a Python loop, and the unrolled graph works for one length only. PyTorch's
    loop operator, which is also named `scan`, works for any length.
    """
    # (d_state, d_inner)
    A = A.t().contiguous()

    def step(h: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        u_t, delta_t, B_t, C_t = inputs
        decay = torch.exp(delta_t[:, None] * A)
        h = decay * h + (delta_t * u_t)[:, None] * B_t[..., None]
        # (batch, 1, d_state) @ (batch, d_state, d_inner)
        return h, torch.matmul(C_t[:, None], h)[:, 0]

    h = u.new_zeros(u.shape[0], *A.shape)
    y: Tensor = scan(step, h, tuple(x.transpose(0, 1) for x in (u, delta, B, C)))[1]
    return y.transpose(0, 1)


def selective_scan_torch(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
) -> Tensor:
    """Compute Mamba's scan in chunks. See `selective_scan` for the arguments."""
    compute = scan_as_graph if torch.compiler.is_exporting() else ChunkedScan.apply
    y: Tensor = compute(u, nn.functional.softplus(delta), A, B, C) + D * u
    return y * nn.functional.silu(z)
