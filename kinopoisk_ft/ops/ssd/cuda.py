"""Run the scan of Mamba-2 on a GPU with the Triton kernel of mamba-ssm."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from kinopoisk_ft.ops.scan import cuda as scan_cuda
from kinopoisk_ft.ops.ssd.reference import SELF_TEST

# Steps per chunk.
CHUNK = 256


def ssd_cuda(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Run the kernel of mamba-ssm. See `ssd_reference` for the arguments."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    y: Tensor = mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size=CHUNK)
    return y


PACKAGE = replace(
    scan_cuda.PACKAGE,
    extension="triton",
    run=ssd_cuda,
    self_test=SELF_TEST,
    # The first length fits in one chunk. The second one needs two chunks.
    sizes=((2, 40, 64), (1, CHUNK + 44, 128)),
)
