"""Apply dropout with PyTorch or with a CPU kernel.

On a CPU, PyTorch draws masks on one thread, but the kernel uses all threads. A mask of the kernel
depends only on a key that is drawn from PyTorch's generator. Therefore the seed of the generator
determines all masks, and the backward pass can compute a mask again from its key.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kinopoisk_ft.ops.backends import NUMBA_ERROR, choose_backend

if NUMBA_ERROR is None:
    from kinopoisk_ft.ops.dropout.cpu import KERNELS, drop

BACKENDS = ("auto", "numba", "torch")


def dropout(x: Tensor, p: float, backend: str = "auto") -> Tensor:
    """Apply dropout (Srivastava et al., 2014).

    Each element becomes zero with probability p. All other elements are divided by 1 - p.

    Args:
        x: tensor of any shape.
        p: dropout probability, from 0 to 1.
        backend: auto (the fastest), numba (on a CPU) or torch (`nn.functional.dropout`).

    Returns:
        A tensor with the shape and dtype of x.

    Raises:
        ValueError: p is not between 0 and 1.
        UserError: the backend is unknown or cannot process these tensors.
    """
    chosen = choose_backend("dropout", backend, BACKENDS, x.device, x.dtype, shape=x.shape)
    if p == 0 or chosen == "torch" or not x.is_floating_point():
        return nn.functional.dropout(x, p)
    # The kernels support float32 and bfloat16, but not float16.
    readable = x if x.dtype in KERNELS else x.float()
    out: Tensor = drop(readable, draw_key(), p)
    return out.to(x.dtype)


def draw_key() -> Tensor:
    """Draw the key of a dropout mask, an int64 scalar, from PyTorch's default generator."""
    # `randint` excludes its limit, which is the largest int64.
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu")
