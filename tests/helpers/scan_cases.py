"""Draw inputs of the selective scan, and compare results with its definition in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kinopoisk_ft.ops.scan.op import selective_scan

BACKENDS = ("reference", "torch", "numba")


def draw(batch: int, length: int, width: int, states: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "u": normal(batch, length, width),
        "delta": normal(batch, length, width) - 2,
        "A": -normal(width, states).exp(),
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(width),
        "z": normal(batch, length, width),
    }


def run(
    scan: Callable[..., Tensor], inputs: dict[str, Tensor], grad: Tensor, **options: object
) -> dict[str, Tensor]:
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    out = scan(**leaves, **options)
    grads = torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype))
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def expected(inputs: dict[str, Tensor], grad: Tensor, **options: object) -> dict[str, Tensor]:
    exact = {name: x.double() for name, x in inputs.items()}
    return run(selective_scan, exact, grad.double(), backend="reference", **options)


def assert_close(
    got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-5, floor: float = 0.0
) -> None:
    """Compare the norm of each error with the norm of the exact tensor.

    floor: smallest root mean square of an exact tensor that its error is divided by.
    """
    assert got.keys() == want.keys()
    for name, exact in want.items():
        assert got[name].isfinite().all(), name
        scale = max(exact.norm().item(), floor * exact.numel() ** 0.5) or 1.0
        error = (got[name].cpu().double() - exact).norm().item() / scale
        assert error < tolerance, f"{name}: relative error {error:.1e}"
