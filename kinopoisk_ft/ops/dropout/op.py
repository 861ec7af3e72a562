"""Apply dropout by PyTorch, or on a CPU by a kernel that uses vectors and all threads.

PyTorch's `bernoulli_` runs on one CPU thread. The kernel's mask is a function of one number that is
drawn from PyTorch's generator at each call, as on a GPU. Therefore seeding, a generator state in a
checkpoint and gradient checkpointing reproduce the mask, two calls have different masks, and the
backward pass recomputes the mask instead of storing it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.backends import NUMBA_ERROR, choose_backend

if NUMBA_ERROR is None:
    from kinopoisk_ft.ops.dropout.cpu import KERNELS, drop

BACKENDS = ("auto", "numba", "torch")


def dropout(x: Tensor, p: float, backend: str = "auto") -> Tensor:
    """Zero each element with probability p (Srivastava et al., 2014) and divide the rest by 1 - p.

    Args:
        x: any shape.
        p: from 0 to 1.
        backend: auto, numba (CPU) or torch (`nn.functional.dropout`).

    Returns:
        A tensor of the shape and dtype of x.

    Raises:
        ValueError: p is not between 0 and 1.
        UserError: the backend cannot run here.
    """
    chosen = choose_backend("dropout", backend, BACKENDS, x.device, x.dtype)
    if p == 0 or chosen == "torch" or not x.is_floating_point():
        return nn.functional.dropout(x, p)
    # The kernels do not read float16.
    readable = x if x.dtype in KERNELS else x.float()
    out: Tensor = drop(readable, draw_key(), p)
    return out.to(x.dtype)


def draw_key() -> Tensor:
    """Draw the key of one call's mask, () int64, from PyTorch's generator."""
    # The limit is excluded; it is the largest int64.
    return torch.randint(2**63 - 1, (), dtype=torch.int64)
