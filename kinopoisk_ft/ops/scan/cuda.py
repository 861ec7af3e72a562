"""Run the selective scan on a GPU with the kernel of mamba-ssm."""

from __future__ import annotations

from torch import Tensor

from kinopoisk_ft.ops.gpu_package import GpuPackage
from kinopoisk_ft.ops.scan.reference import SELF_TEST


def selective_scan_cuda(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
) -> Tensor:
    """Run the kernel of mamba-ssm. See `selective_scan` for the arguments."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    # The kernel expects time as the last dimension.
    u, delta, B, C, z = (x.transpose(1, 2).contiguous() for x in (u, delta, B, C, z))
    y = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias=None, delta_softplus=True)
    return y.transpose(1, 2)


# Newer versions of mamba-ssm compile the kernel only if MAMBA_KEEP_CUDA_BUILD is set
# (https://github.com/state-spaces/mamba/pull/977); older ones ignore it. Without --no-cache-dir,
# pip could install a wheel from its cache that was built without the kernel.
PACKAGE = GpuPackage(
    name="mamba-ssm",
    module="mamba_ssm",
    extension="selective_scan_cuda",
    run=selective_scan_cuda,
    self_test=SELF_TEST,
    install="MAMBA_KEEP_CUDA_BUILD=TRUE "
    "pip install --no-cache-dir --no-build-isolation 'mamba-ssm>=2.2'",
    rebuild="MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE pip install --force-reinstall "
    "--no-deps --no-cache-dir --no-build-isolation --no-binary mamba-ssm 'mamba-ssm>=2.2'",
    # The kernel processes 2048 steps at a time. The last length needs two passes, the others one.
    sizes=((2, 40, 16), (1, 300, 8), (1, 2100, 4)),
)
