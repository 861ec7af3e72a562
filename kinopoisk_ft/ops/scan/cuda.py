"""The selective scan on a GPU by mamba-ssm's kernel."""

from __future__ import annotations

from torch import Tensor

from kinopoisk_ft.ops.gpu_package import GpuPackage
from kinopoisk_ft.ops.scan.reference import SUBJECT


def selective_scan_cuda(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """As `selective_scan_reference`; the kernel wants time last."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    u, delta, B, C = (x.transpose(1, 2).contiguous() for x in (u, delta, B, C))
    z = None if z is None else z.transpose(1, 2).contiguous()
    y = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return y.transpose(1, 2)


# Newer sources compile the kernel only where MAMBA_KEEP_CUDA_BUILD is set
# (https://github.com/state-spaces/mamba/pull/977); older ones do not read it. Without
# --no-cache-dir pip would take a wheel from its cache that was built without the kernel.
PACKAGE = GpuPackage(
    name="mamba-ssm",
    module="mamba_ssm",
    extension="selective_scan_cuda",
    run=selective_scan_cuda,
    subject=SUBJECT,
    install="MAMBA_KEEP_CUDA_BUILD=TRUE "
    "pip install --no-cache-dir --no-build-isolation 'mamba-ssm>=2.2'",
    rebuild="MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install --force-reinstall "
    "--no-deps --no-cache-dir --no-build-isolation --no-binary mamba-ssm 'mamba-ssm>=2.2'",
    sizes=((2, 40, 16), (1, 300, 8), (1, 2100, 4)),  # one pass, and 2048 steps of time at once
)
