"""The scan of Mamba-2 on a GPU by mamba-ssm's Triton kernel."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from kinopoisk_ft.ops.scan import cuda as scan_cuda
from kinopoisk_ft.ops.ssd.reference import SUBJECT

CHUNK = 256


def ssd_cuda(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """As `ssd_reference`."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    y: Tensor = mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size=CHUNK)
    return y


PACKAGE = replace(
    scan_cuda.PACKAGE,
    extension="triton",
    run=ssd_cuda,
    subject=SUBJECT,
    sizes=((2, 40, 64), (1, CHUNK + 44, 128)),  # in one chunk, and from one to the next
)
