"""Dropout: PyTorch's own, or on a CPU one whose draws are vectorised and shared by all threads.

On a CPU `bernoulli_` runs on one thread whatever their number. Here a mask is a function of one
number drawn from PyTorch's generator for each call, as on a GPU: so seeding, a generator's state
kept in a checkpoint, and gradient checkpointing replay it, two calls differ, and a backward pass
recomputes the mask instead of keeping it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.backends import NUMBA_ERROR, choose

if NUMBA_ERROR is None:
    from kinopoisk_ft.ops.dropout.cpu import KERNELS, drop

BACKENDS = ("auto", "numba", "torch")


def dropout(x: Tensor, p: float, backend: str = "auto") -> Tensor:
    """Zero each element with probability p (Srivastava et al., 2014) and divide the rest by 1 - p.

    Args:
        x: any shape. p: from 0 to 1.
        backend: auto, numba (CPU) or torch (`nn.functional.dropout`).

    Returns:
        A tensor of the shape and dtype of x.

    Raises:
        ValueError: p out of range. UserError: a backend that cannot run here.
    """
    chosen = choose("dropout", backend, BACKENDS, x.device, x.dtype)
    if p == 0 or chosen == "torch" or not x.is_floating_point():
        return nn.functional.dropout(x, p)
    known = x if x.dtype in KERNELS else x.float()  # from float16
    found: Tensor = drop(known, draw_key(), p)
    return found.to(x.dtype)


def draw_key() -> Tensor:
    """Return the number that decides a call's mask, () int64, from PyTorch's generator."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64)
