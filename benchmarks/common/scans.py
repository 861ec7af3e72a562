"""Call the selective scans of this project and others, with the inputs of an untrained Mamba."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.scan.op import selective_scan

BATCH, WIDTH, STATES = 8, 512, 16
NAMES = ("u", "delta", "A", "B", "C", "D", "z")
OURS, MAMBAPY, TRANSFORMERS = "ours", "mambapy", "transformers"
LOOP, CHUNKED = "loop over unbind", "chunks in plain PyTorch"

Scan = Callable[..., Tensor]


def draw(length: int) -> list[Tensor]:
    """Return u, delta, A, B, C, D and z, which require gradients; delta is before softplus."""
    sequence, weights = (BATCH, length, WIDTH), (BATCH, length, STATES)
    A = -torch.arange(1.0, STATES + 1).repeat(WIDTH, 1)
    delta = torch.randn(sequence) - 4
    found = [torch.randn(sequence), delta, A, torch.randn(weights), torch.randn(weights),
             torch.randn(WIDTH), torch.randn(sequence)]  # fmt: skip
    return [x.requires_grad_() for x in found]


def differentiate(scan: Scan, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Run a forward and a backward pass; return the output and the gradient of each input."""
    out = scan(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def scans() -> dict[str, Scan]:
    """Return every implementation that is installed."""
    found: dict[str, Scan] = {
        name: partial(selective_scan, backend=backend)
        for name, backend in ((OURS, "numba"), (LOOP, "reference"), (CHUNKED, "torch"))
    }
    others = {MAMBAPY: mambapy_scan(), TRANSFORMERS: transformers_scan()}
    return found | {name: scan for name, scan in others.items() if scan}


def mambapy_scan() -> Scan | None:
    """Return mambapy's parallel scan with softplus and gate, as its block calls it."""
    try:
        from mambapy.mamba import MambaBlock
    except ImportError:
        return None

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
    ) -> Tensor:
        # The method does not use `self`.
        y = MambaBlock.selective_scan(None, u, nn.functional.softplus(delta), A, B, C, D)
        return y * nn.functional.silu(z)

    return scan


def transformers_scan() -> Scan | None:
    """Return the loop that transformers uses if no extra kernels are installed."""
    try:
        from transformers.models.mamba.modeling_mamba import mamba_selective_scan
    except ImportError:
        return None

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
    ) -> Tensor:
        u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
        return mamba_selective_scan(u, delta, A, B, C, D, z=z, delta_softplus=True).transpose(1, 2)

    return scan
