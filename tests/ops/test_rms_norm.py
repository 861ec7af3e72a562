"""Test root mean square normalization: CPU kernels against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.mamba2 import RMSNorm
from kinopoisk_ft.ops.rms_norm.cpu import ROWS
from kinopoisk_ft.ops.rms_norm.op import rms_norm


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def run(x: Tensor, weight: Tensor | None, grad: Tensor, eps: float) -> list[Tensor]:
    """Compute output and gradients: by `F.rms_norm` if grad is float64, else by `rms_norm`."""
    leaves = [y.detach().to(grad.dtype).requires_grad_() for y in (x, weight) if y is not None]
    given = (leaves[0], leaves[1] if weight is not None else None)
    if grad.dtype == torch.float64:
        out = nn.functional.rms_norm(given[0], x.shape[-1:], given[1], eps)
    else:
        out = rms_norm(*given, eps, backend="numba")
    return [out, *torch.autograd.grad(out, leaves, grad)]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([1, 3, ROWS - 1, ROWS, 2 * ROWS + 5]), width=st.integers(1, 100),
    weighted=st.booleans(), scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
)  # fmt: skip
def test_agrees_with_float64(rows: int, width: int, weighted: bool, scale: float) -> None:
    torch.manual_seed(0)
    x, weight = scale * torch.randn(rows, width), torch.randn(width) if weighted else None
    grad = torch.randn(rows, width)
    got, want = (run(x, weight, g, 1e-5) for g in (grad, grad.double()))
    # The gradient of x is a difference of two terms of this size, which may cancel.
    rms = (x.double().square().mean(1, keepdim=True) + 1e-5).sqrt()
    term = (grad.double() * (1 if weight is None else weight.double()) / rms).norm().item()
    for one, exact in zip(got, want, strict=True):
        assert one.shape == exact.shape
        assert (one.double() - exact).norm() <= 1e-5 * exact.norm().item() + 1e-6 * term


def test_result_does_not_depend_on_threads_or_layout() -> None:
    x, weight, grad = torch.randn(48, 5, 7).permute(2, 1, 0), torch.randn(48), torch.randn(7, 5, 48)
    want, threads = run(x, weight, grad.double(), 1e-5), torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(run(x, weight, grad.transpose(0, 1).contiguous().transpose(0, 1),
                                  1e-5))  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for one, other, exact in zip(*results, want, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=1e-5)


def test_operator_passes_opcheck() -> None:
    from kinopoisk_ft.ops.rms_norm.cpu import normalize

    checks = ("test_schema", "test_autograd_registration", "test_faketensor",
              "test_aot_dispatch_static")  # fmt: skip
    for weight in (None, torch.randn(18, requires_grad=True)):
        x = torch.randn(2, 9, 18, requires_grad=True)
        for dtype in (torch.float32, torch.bfloat16):
            torch.library.opcheck(normalize, (x, weight, 1e-5, dtype), test_utils=checks)
    compiled = torch.compile(rms_norm, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight), rms_norm(x, weight))
    assert rms_norm(x.detach().to("meta")).shape == x.shape


def test_layer_uses_pytorch_unless_float32() -> None:
    ours, theirs = RMSNorm(32, eps=1e-6), nn.RMSNorm(32, eps=1e-6)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.randn(3, 32, dtype=dtype)
        assert torch.equal(ours.to(dtype)(x), theirs.to(dtype)(x))
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(3, 32)
        assert ours.float()(x).dtype == theirs.float()(x).dtype == torch.float32


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_output_in_another_dtype_is_rounded_once(dtype: torch.dtype, backend: str) -> None:
    x, weight = torch.randn(70, 19).requires_grad_(), torch.randn(19).requires_grad_()
    grad = torch.randn(70, 19).to(dtype)
    got = rms_norm(x, weight, 1e-5, backend, dtype)
    want = rms_norm(x, weight, 1e-5, backend).to(dtype)
    assert torch.equal(got, want)
    grads = (torch.autograd.grad(out, (x, weight), grad) for out in (got, want))
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ValueError, match=r"weight must be of shape \(6,\)"):
        rms_norm(torch.randn(2, 6), torch.randn(5))
    with pytest.raises(UserError, match="did you mean 'numba'"):
        rms_norm(torch.randn(2, 6), backend="nunba")


def test_result_does_not_depend_on_default_dtype_and_device() -> None:
    """The first call makes tensors that later calls reuse; the defaults must not affect them."""
    x = torch.randn(2, 46, dtype=torch.float32)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            got = rms_norm(x, eps=1e-5, backend="numba")
    finally:
        torch.set_default_dtype(torch.float32)
    want = nn.functional.rms_norm(x, (46,), eps=1e-5)
    for out in (got, rms_norm(x, eps=1e-5, backend="numba")):
        torch.testing.assert_close(out, want)
