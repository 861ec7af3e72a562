"""Which kernels of scaled dot-product attention run on the device, and whether flash-attn does."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kinopoisk_ft.checks.finding import Finding, told
from kinopoisk_ft.checks.machine import automatic
from kinopoisk_ft.training.precision import DTYPES

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
FLASH_ATTN = "pip install --no-build-isolation flash-attn"


def attention() -> Iterator[Finding]:
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
    yield _flash_attn(device)


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


def _flash_attn(device: torch.device) -> Finding:
    """The package by that name: PyTorch's own kernels above do without it, and so does a run."""
    if importlib.util.find_spec("flash_attn") is None:
        fix = FLASH_ATTN if device.type == "cuda" else None
        detail = "it is not installed; no model here asks for it"
        return Finding("flash-attn", "missing", detail, fix=fix)
    try:
        version = importlib.import_module("flash_attn").__version__
    except Exception as error:
        fix = f"{FLASH_ATTN} --force-reinstall --no-deps --no-cache-dir"
        return Finding("flash-attn", "broken", f"its import fails: {told(error)}", fix=fix)
    return Finding("flash-attn", "ok", f"{version}; no model here asks for it")
