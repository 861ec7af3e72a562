"""What mamba-ssm's backward pass adds atomically, added here in orders of choice.

Its kernel (csrc/selective_scan/selective_scan_bwd_kernel.cuh) gives each row and channel a block of
threads, which adds its parts of the gradients of B and C to those of the row's other channels, and
of A and D to those of the other rows. The order of the blocks is all that atomic additions change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.scans import NAMES
from kinopoisk_ft.ops.scan.op import selective_scan

SHARED_BY_CHANNELS, SHARED_BY_ROWS = ("B", "C"), ("A", "D")


def parts_of_blocks(inputs: Sequence[Tensor], grad: Tensor) -> dict[str, Tensor]:
    """Return the parts of each shared gradient, along the first dimension.

    For `inputs` as in `scans.draw` and `grad` (batch, length, d_inner): of B and C
    (d_inner, batch, length, d_state), of A (batch, d_inner, d_state), of D (batch, d_inner).
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
    """Return the gradients of one block, by the names of its inputs."""
    u, delta, A, B, C, D, z = (x.detach() for x in inputs)
    rows, channel = slice(row, row + 1), slice(i, i + 1)
    block = [u[rows, :, channel], delta[rows, :, channel], A[channel], B[rows], C[rows],
             D[channel], z[rows, :, channel]]  # fmt: skip
    block = [x.requires_grad_() for x in block]
    out = selective_scan(*block, delta_softplus=True)
    found = torch.autograd.grad(out, block, grad[rows, :, channel])
    return dict(zip(NAMES, found, strict=True))


def added_in_some_order(parts: Tensor) -> Tensor:
    """Return the sum over the first dimension, one part after the other in a random order."""
    total = torch.zeros_like(parts[0])
    for i in torch.randperm(len(parts)).tolist():
        total += parts[i]
    return total
