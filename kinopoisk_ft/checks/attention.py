"""Check the attention kernels of PyTorch, of this project and of flash-attn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinopoisk_ft.checks.finding import Finding
from kinopoisk_ft.checks.kernels import check_gpu_package, check_numba
from kinopoisk_ft.checks.machine import choose_auto
from kinopoisk_ft.ops.attention import op as attention_op
from kinopoisk_ft.ops.attention.cuda import PACKAGE, draw
from kinopoisk_ft.ops.self_test import SelfTest
from kinopoisk_ft.training.precision import DTYPES

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
# This rate selects the code path with dropout, but is so small that the self-test drops no value.
TINY_DROPOUT = 1e-9


def _attend_with_dropout(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=TINY_DROPOUT)


DROPOUT_SELF_TEST = SelfTest(reference=_attend_with_dropout, draw=draw)


def check_attention() -> Iterator[Finding]:
    """Check each attention kernel on this machine."""
    device, kind, _ = choose_auto()
    dtype = DTYPES[kind]
    where = f"on {device.type} in {str(dtype).removeprefix('torch.')}"
    for name, kernel in KERNELS.items():
        # Some kernels accept no mask, such as PyTorch's flash kernel on CUDA.
        masks = {"without": False, "with": True}
        modes = [text for text, mask in masks.items() if _can_run(kernel, device, dtype, mask)]
        # PyTorch uses the math kernel if the others do not support the inputs.
        needed = name == "math"
        if modes:
            detail = f"runs {where} {' and '.join(modes)} a padding mask"
            yield Finding(name, "ok", detail, needed)
        else:
            yield Finding(name, "missing", f"does not run {where}", needed)
    # Without dropout, `attention` calls PyTorch, so only the kernel with dropout is tested.
    yield check_numba(
        DROPOUT_SELF_TEST,
        partial(attention_op.attention, mask=None, p=TINY_DROPOUT, backend="numba"),
    )
    yield check_gpu_package(PACKAGE, device)


def _can_run(kernel: SDPBackend, device: torch.device, dtype: torch.dtype, masked: bool) -> bool:
    # Training also needs the backward pass, so the inputs require gradients.
    # (batch, heads, length, width)
    x = torch.ones(2, 2, 16, 64, device=device, dtype=dtype, requires_grad=True)
    # (batch, 1, 1, keys): a padding mask is the same for all heads and queries.
    mask = torch.ones(2, 1, 1, 16, device=device, dtype=torch.bool) if masked else None
    try:
        # PyTorch emits long warnings if it cannot use a kernel.
        with warnings.catch_warnings(action="ignore"), sdpa_kernel([kernel]):
            nn.functional.scaled_dot_product_attention(x, x, x, mask).sum().backward()
    except RuntimeError:
        # PyTorch raises this error if the only allowed kernel does not support the inputs.
        return False
    return True
