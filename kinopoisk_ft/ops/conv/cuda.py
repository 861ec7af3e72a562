"""Run the causal convolution on a GPU with the kernel of causal-conv1d."""

from __future__ import annotations

from torch import Tensor

from kinopoisk_ft.ops.conv.reference import SELF_TEST
from kinopoisk_ft.ops.gpu_package import GpuPackage

# Numbers of taps (kernel sizes) that the kernel supports: 2 to 4.
TAPS = range(2, 5)


def causal_conv1d_cuda(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Run the kernel of causal-conv1d. See `causal_conv1d` for the arguments."""
    from causal_conv1d import causal_conv1d_fn

    # If channels were contiguous in memory, the kernel would require a multiple of 8 channels. If
    # time steps are contiguous, it supports any number of channels.
    out = causal_conv1d_fn(
        x.transpose(1, 2).contiguous(), weight.contiguous(), bias, activation="silu"
    )
    return out.transpose(1, 2)


PACKAGE = GpuPackage(
    name="causal-conv1d",
    module="causal_conv1d",
    extension="causal_conv1d_cuda",
    run=causal_conv1d_cuda,
    self_test=SELF_TEST,
    install="pip install --no-build-isolation 'causal-conv1d>=1.5'",
    rebuild="CAUSAL_CONV1D_FORCE_BUILD=TRUE pip install --force-reinstall --no-deps "
    "--no-cache-dir --no-build-isolation --no-binary causal-conv1d 'causal-conv1d>=1.5'",
    # The first length fits in one block of GPU threads. The second one needs several blocks.
    sizes=((2, 40, 16), (1, 2100, 8)),
)
