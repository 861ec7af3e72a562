"""Check the kernels of installed GPU packages: values and gradients against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import stand_ins
import torch
from gpu import ON_GPU, require_package

from kinopoisk_ft.ops.attention import cuda as attention_cuda
from kinopoisk_ft.ops.conv import cuda as conv_cuda
from kinopoisk_ft.ops.gpu_package import GpuPackage
from kinopoisk_ft.ops.scan import cuda as scan_cuda
from kinopoisk_ft.ops.ssd import cuda as ssd_cuda


@pytest.mark.parametrize("device", [ON_GPU])
@pytest.mark.parametrize(
    ("package", "stand_in"),
    [
        pytest.param(scan_cuda.PACKAGE, stand_ins.mamba_ssm, id="mamba-ssm"),
        pytest.param(ssd_cuda.PACKAGE, stand_ins.mamba_ssm_duality, id="mamba-ssm for Mamba-2"),
        pytest.param(conv_cuda.PACKAGE, stand_ins.causal_conv1d, id="causal-conv1d"),
        pytest.param(attention_cuda.PACKAGE, stand_ins.flash_attn, id="flash-attn"),
    ],
)
def test_installed_packages_pass_their_self_tests(
    package: GpuPackage, stand_in: Any, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_package(package, device, monkeypatch, stand_in)
    assert package.diagnose(torch.device(device)) is None
