"""Causal depthwise convolution and SiLU on a GPU by the kernel of the package causal-conv1d."""

from __future__ import annotations

from torch import Tensor

from kinopoisk_ft.ops.conv.reference import SUBJECT
from kinopoisk_ft.ops.gpu_package import GpuPackage

TAPS = range(2, 5)  # the kernel's own limit


def causal_conv1d_cuda(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `causal_conv1d_torch`; with time last the kernel takes any number of channels."""
    from causal_conv1d import causal_conv1d_fn

    out = causal_conv1d_fn(
        x.transpose(1, 2).contiguous(), weight.contiguous(), bias, activation="silu"
    )
    return out.transpose(1, 2)


PACKAGE = GpuPackage(
    name="causal-conv1d",
    module="causal_conv1d",
    extension="causal_conv1d_cuda",
    run=causal_conv1d_cuda,
    subject=SUBJECT,
    install="pip install --no-build-isolation 'causal-conv1d>=1.5'",
    rebuild="CAUSAL_CONV1D_FORCE_BUILD=TRUE pip install --force-reinstall --no-deps "
    "--no-cache-dir --no-build-isolation --no-binary causal-conv1d 'causal-conv1d>=1.5'",
    sizes=((2, 40, 16), (1, 2100, 8)),  # in one block of threads, and from one to the next
)
