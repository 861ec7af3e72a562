"""Implement the causal convolution in plain PyTorch, as a reference."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.self_test import SelfTest, draw_normal


def causal_conv1d_torch(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a causal convolution, then SiLU. See `causal_conv1d` for the arguments."""
    # Zeros before the first step make the convolution causal: (batch, d_inner, width - 1 + length).
    padded = nn.functional.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0))
    out = nn.functional.conv1d(padded, weight[:, None], bias, groups=weight.shape[0])
    return nn.functional.silu(out).transpose(1, 2)


def draw(batch: int, length: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw random arguments for the self-test, with a kernel size of 4 as in Mamba."""
    shapes = {"x": (batch, length, width), "weight": (width, 4), "bias": (width,)}
    return {name: draw_normal(generator, *shape) for name, shape in shapes.items()}


SELF_TEST = SelfTest(causal_conv1d_torch, draw)
