"""Implement the selective scan step by step, as a reference for the other backends."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.self_test import SelfTest


def selective_scan_reference(
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
    """Compute Mamba's scan (Gu & Dao, 2023, https://arxiv.org/abs/2312.00752) step by step.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = C_t h_t + D u_t;  out = y silu(z)

    Args:
        u, delta, z: (batch, length, d_inner). If z is None, out = y.
        A: (d_inner, d_state).
        B, C: (batch, length, d_state).
        D, delta_bias: (d_inner,).
        delta_softplus: whether delta_t is softplus(delta + delta_bias), not delta + delta_bias.

    Returns:
        (batch, length, d_inner) in the dtype of the inputs.
    """
    if delta_bias is not None:
        delta = delta + delta_bias
    if delta_softplus:
        delta = nn.functional.softplus(delta)
    # (batch, d_inner, d_state)
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    outputs = []
    for u_t, delta_t, B_t, C_t in zip(*(x.unbind(1) for x in (u, delta, B, C)), strict=True):
        h = torch.exp(delta_t[..., None] * A) * h + (delta_t * u_t)[..., None] * B_t[:, None]
        # (batch, d_inner)
        outputs.append((h * C_t[:, None]).sum(-1))
    # (batch, length, d_inner)
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + D * u
    return y if z is None else y * nn.functional.silu(z)


def draw(
    batch: int, length: int, width: int, generator: torch.Generator, states: int = 16
) -> dict[str, Tensor]:
    """Draw random arguments for the self-test, with magnitudes as in a trained layer."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "u": normal(batch, length, width),
        "delta": normal(batch, length, width),
        "A": -normal(width, states).exp(),
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(width),
        "z": normal(batch, length, width),
        "delta_bias": normal(width),
    }


SELF_TEST = SelfTest(selective_scan_reference, draw, {"delta_softplus": True})
