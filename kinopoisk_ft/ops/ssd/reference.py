"""Implement the scan of Mamba-2 step by step, as a reference for the other backends."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.self_test import SelfTest, draw_normal


def ssd_reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Compute Mamba-2's scan step by step, without D. See `ssd` for the arguments.

    dt must already include the bias, the softplus and the limits. Consecutive heads share a group
    of B and C.
    """
    heads_per_group = x.shape[2] // B.shape[2]
    # (batch, length, heads, d_state)
    B, C = (matrix.repeat_interleave(heads_per_group, dim=2) for matrix in (B, C))
    # (batch, heads, head_dim, d_state)
    h = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[3])
    outputs = []
    for x_t, dt_t, B_t, C_t in zip(*(part.unbind(1) for part in (x, dt, B, C)), strict=True):
        # (batch, heads, head_dim, d_state)
        inflow = (dt_t[..., None] * x_t)[..., None] * B_t[:, :, None]
        h = torch.exp(dt_t * A)[..., None, None] * h + inflow
        # (batch, heads, head_dim)
        outputs.append((h * C_t[:, :, None]).sum(-1))
    return torch.stack(outputs, dim=1)


def draw(
    batch: int, length: int, width: int, generator: torch.Generator, states: int = 64
) -> dict[str, Tensor]:
    """Draw random arguments for the self-test, with two groups of heads."""
    heads = 4
    normal = partial(draw_normal, generator)
    return {
        "x": normal(batch, length, heads, width // heads),
        "dt": nn.functional.softplus(normal(batch, length, heads) - 2),
        "A": -normal(heads).exp(),
        "B": normal(batch, length, 2, states),
        "C": normal(batch, length, 2, states),
    }


SELF_TEST = SelfTest(ssd_reference, draw)
