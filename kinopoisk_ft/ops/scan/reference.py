"""Implement the selective scan step by step, as a reference for the other backends."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.self_test import SelfTest, draw_normal


def selective_scan_reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
) -> Tensor:
    """Compute Mamba's scan step by step. See `selective_scan` for the arguments."""
    dt = nn.functional.softplus(delta)
    # (batch, d_inner, d_state)
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    outputs = []
    for u_t, dt_t, B_t, C_t in zip(*(x.unbind(1) for x in (u, dt, B, C)), strict=True):
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * u_t)[..., None] * B_t[:, None]
        # (batch, d_inner)
        outputs.append((h * C_t[:, None]).sum(-1))
    # (batch, length, d_inner)
    y = torch.stack(outputs, dim=1) + D * u
    return y * nn.functional.silu(z)


def draw(
    batch: int, length: int, width: int, generator: torch.Generator, states: int = 16
) -> dict[str, Tensor]:
    """Draw random arguments for the self-test, with magnitudes as in a trained layer."""
    normal = partial(draw_normal, generator)
    return {
        "u": normal(batch, length, width),
        "delta": normal(batch, length, width),
        "A": -normal(width, states).exp(),
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(width),
        "z": normal(batch, length, width),
    }


SELF_TEST = SelfTest(selective_scan_reference, draw)
