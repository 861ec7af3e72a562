"""Compute the terms that mamba-ssm's backward pass adds atomically, and add them in any order.

Its kernel (csrc/selective_scan/selective_scan_bwd_kernel.cuh) runs a block of threads for each row
and channel. Blocks of the same row add their terms of the gradients of B and C, and blocks of the
same channel those of A and D. Atomic additions change only the order of these blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.scans import NAMES
from kinopoisk_ft.ops.scan.op import selective_scan

SHARED_BY_CHANNELS, SHARED_BY_ROWS = ("B", "C"), ("A", "D")


def parts_of_blocks(inputs: Sequence[Tensor], grad: Tensor) -> dict[str, Tensor]:
    """Return the terms of each shared gradient, along the first dimension.

    Args:
        inputs: as from `scans.draw`.
        grad: (batch, length, d_inner).

    Returns:
        B and C: (d_inner, batch, length, d_state). A: (batch, d_inner, d_state).
        D: (batch, d_inner).
    """
    rows, _, channels = grad.shape
    found = [_gradients(inputs, grad, row, i) for row in range(rows) for i in range(channels)]
    parts = {}
    for name in SHARED_BY_CHANNELS + SHARED_BY_ROWS:
        every = torch.stack([block[name][0] for block in found])
        every = every.unflatten(0, (rows, channels))
        parts[name] = every.transpose(0, 1) if name in SHARED_BY_CHANNELS else every
    return parts


def _gradients(inputs: Sequence[Tensor], grad: Tensor, row: int, i: int) -> dict[str, Tensor]:
    """Return the gradients of one block, by input name."""
    u, delta, A, B, C, D, z = (x.detach() for x in inputs)
    rows, channel = slice(row, row + 1), slice(i, i + 1)
    block = [u[rows, :, channel], delta[rows, :, channel], A[channel], B[rows], C[rows],
             D[channel], z[rows, :, channel]]  # fmt: skip
    block = [x.requires_grad_() for x in block]
    out = selective_scan(*block)
    found = torch.autograd.grad(out, block, grad[rows, :, channel])
    return dict(zip(NAMES, found, strict=True))


def added_in_some_order(parts: Tensor) -> Tensor:
    """Return the sum over the first dimension, added one by one in a random order."""
    total = torch.zeros_like(parts[0])
    for i in torch.randperm(len(parts)).tolist():
        total += parts[i]
    return total
