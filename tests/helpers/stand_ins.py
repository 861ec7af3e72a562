"""Install fake packages of GPU kernels: correct ones, wrong ones, and ones without kernels."""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import torch
from torch import Tensor, nn

from kinopoisk_ft.ops import gpu_package
from kinopoisk_ft.ops.scan.reference import selective_scan_reference
from kinopoisk_ft.ops.ssd.reference import ssd_reference

MAMBA_SSM = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")


def mamba_ssm(monkeypatch: pytest.MonkeyPatch, skip_scale: float = 1.0) -> None:
    """Install a fake mamba-ssm with its layout (time last)."""

    def scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
        *, delta_bias: None, delta_softplus: bool,
    ) -> Tensor:  # fmt: skip
        assert delta_softplus
        u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
        y = selective_scan_reference(u, delta, A, B, C, D * skip_scale, z)
        return y.transpose(1, 2)

    for name in MAMBA_SSM:
        _place(monkeypatch, name, selective_scan_fn=scan)


def mamba_ssm_without_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a fake mamba-ssm without its compiled part: importing works, but its scan raises."""

    def scan(*args: object) -> Tensor:
        raise RuntimeError("selective_scan_cuda was not built\nsecond line")

    for name in MAMBA_SSM:
        _place(monkeypatch, name, selective_scan_fn=scan)


def mamba_ssm_duality(
    monkeypatch: pytest.MonkeyPatch, scale: float = 1.0, longer_than: int = 0
) -> None:
    """Install a fake Triton scan of Mamba-2, scaled wrongly for rows of more than `longer_than`."""

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> Tensor:
        y = ssd_reference(x, dt, A, B, C)
        return scale * y if x.shape[1] > longer_than else y

    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        _place(monkeypatch, name)
    module = "mamba_ssm.ops.triton.ssd_combined"
    _place(monkeypatch, module, mamba_chunk_scan_combined=scan)


def causal_conv1d(monkeypatch: pytest.MonkeyPatch, bias_scale: float = 1.0) -> None:
    """Install a fake causal-conv1d: `conv1d` with padding on both sides, cut to the length."""

    def conv(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None
    ) -> Tensor:
        assert activation == "silu"
        # With channels last, the package requires a multiple of 8 channels.
        assert x.is_contiguous()
        (width, taps), length = weight.shape, x.shape[2]
        bias = None if bias is None else bias * bias_scale
        out = nn.functional.conv1d(x, weight[:, None], bias, padding=taps - 1, groups=width)
        return nn.functional.silu(out[..., :length])

    _place(monkeypatch, "causal_conv1d", causal_conv1d_fn=conv)


def causal_conv1d_without_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a fake causal-conv1d built without CUDA, from which nothing can be imported."""
    _place(monkeypatch, "causal_conv1d")


def flash_attn(monkeypatch: pytest.MonkeyPatch, scale: float = 1.0) -> None:
    """Install a fake flash-attn: SDPA in half precision, one row after another."""

    def varlen(
        q: Tensor, k: Tensor, v: Tensor, starts: Tensor, k_starts: Tensor,
        longest: int, k_longest: int, dropout_p: float, softmax_scale: float | None,
    ) -> Tensor:  # fmt: skip
        assert q.dtype in (torch.float16, torch.bfloat16)
        assert starts.dtype == torch.int32
        lengths, k_lengths = starts.diff().tolist(), k_starts.diff().tolist()
        assert (max(lengths), max(k_lengths)) == (longest, k_longest)
        rows = [
            nn.functional.scaled_dot_product_attention(
                *(x[None].transpose(1, 2) for x in row), dropout_p=dropout_p, scale=softmax_scale
            ).transpose(1, 2)[0]
            for row in zip(q.split(lengths), k.split(k_lengths), v.split(k_lengths), strict=True)
        ]
        return torch.cat(rows) * scale

    _place(monkeypatch, "flash_attn", flash_attn_varlen_func=varlen)


def _place(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for key, value in contents.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)
    gpu_package.find_problem.cache_clear()
