"""Which kernels of attention run on the device; whether ours with dropout, and flash-attn, work."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinopoisk_ft.checks.finding import Finding
from kinopoisk_ft.checks.kernels import numba, packaged
from kinopoisk_ft.checks.machine import automatic
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


def _with_dropout(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=HARDLY)


HARDLY = 1e-9  # drops nothing from so few numbers, and goes the way of dropout
DROPPING = SelfTest(reference=_with_dropout, draw=draw)


def kernels() -> Iterator[Finding]:
    """Try each kernel forward and backward, without a padding mask and with one."""
    device, kind, _ = automatic()
    dtype = DTYPES[kind]
    for name, kernel in KERNELS.items():
        works = [text for text, mask in (("without", False), ("with", True))
                 if _runs(kernel, device, dtype, mask)]  # fmt: skip
        where = f"on {device.type} in {str(dtype).removeprefix('torch.')}"
        needed = name == "math"  # it takes over wherever the others cannot run
        if works:
            detail = f"runs {where} {' and '.join(works)} a padding mask"
            yield Finding(name, "ok", detail, needed)
        else:
            yield Finding(name, "missing", f"does not run {where}", needed)
    yield numba(DROPPING, partial(attention_op.attention, mask=None, p=HARDLY, backend="numba"))
    yield packaged(PACKAGE, device)


def _runs(kernel: SDPBackend, device: torch.device, dtype: torch.dtype, masked: bool) -> bool:
    x = torch.ones(2, 2, 16, 64, device=device, dtype=dtype, requires_grad=True)
    mask = torch.ones(2, 1, 1, 16, device=device, dtype=torch.bool) if masked else None
    try:
        # PyTorch gives its reasons as warnings of half a page.
        with warnings.catch_warnings(action="ignore"), sdpa_kernel([kernel]):
            nn.functional.scaled_dot_product_attention(x, x, x, mask).sum().backward()
    except RuntimeError:
        return False
    return True
