"""The selective scan on a GPU by mamba-ssm's kernel, trusted only after a self-test."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import torch
from torch import Tensor

from kinopoisk_ft.ops.scan_reference import selective_scan_reference

log = logging.getLogger(__name__)


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


@cache
def self_test(device: torch.device) -> str | None:
    """Compare values and gradients on a few rows with the reference; return what is wrong."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return "mamba-ssm is not installed"
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    batch, length, width, states = 2, 40, 16, 16
    sequence, weights = (batch, length, width), (batch, length, states)
    inputs = [
        draw(*sequence),
        draw(*sequence),
        -draw(width, states).exp(),
        draw(*weights),
        draw(*weights),
    ]
    inputs += [draw(width), draw(*sequence), draw(width)]
    try:
        ours, theirs = (
            _run(scan, inputs) for scan in (selective_scan_reference, selective_scan_cuda)
        )
    except Exception as error:
        log.warning("mamba-ssm fails its self-test on %s", device, exc_info=True)
        return f"mamba-ssm fails on {device}: {error}"
    for expected, got in zip(ours, theirs, strict=True):
        if not torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
            return f"mamba-ssm differs from the reference on {device}"
    return None


def _run(scan: object, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = scan(*leaves, True)  # type: ignore[operator]
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]
