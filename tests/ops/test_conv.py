"""Test the causal convolution: CPU kernels against `conv1d` in float64, values and gradients."""

from __future__ import annotations

import pytest
import stand_ins
import torch
from gpu import on_gpu, require_package
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.ops.conv import cuda as conv_cuda
from kinopoisk_ft.ops.conv import op as conv_op
from kinopoisk_ft.ops.conv.op import causal_conv1d


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def run(inputs: list[Tensor], grad: Tensor, **options: object) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = causal_conv1d(*leaves, **options)  # type: ignore[arg-type]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_close(got: list[Tensor], want: list[Tensor], tolerance: float = 1e-5) -> None:
    for one, exact in zip(got, want, strict=True):
        assert (one.cpu().double() - exact).norm() <= tolerance * max(exact.norm().item(), 0.05)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 4), length=st.integers(1, 80), channels=st.integers(1, 140),
    width=st.sampled_from([1, 2, 3, 4, 7, 40]), bias=st.booleans(), data=st.data(),
)  # fmt: skip
def test_numba_agrees_with_conv1d(
    batch: int, length: int, channels: int, width: int, bias: bool, data: st.DataObject
) -> None:
    rows = st.lists(st.integers(0, length), min_size=batch, max_size=batch)
    lengths = data.draw(st.none() | rows.map(torch.tensor))
    inputs = [torch.randn(batch, length, channels), torch.randn(channels, width)]
    inputs += [torch.randn(channels)] if bias else []
    grad = torch.randn(batch, length, channels)
    got = run(inputs, grad, lengths=lengths, backend="numba")
    exact = [x.double() for x in inputs]
    assert_close(got, run(exact, grad.double(), lengths=lengths, backend="torch"))


def test_definition_is_causal_conv1d_and_silu() -> None:
    x, weight, bias = torch.randn(2, 9, 6), torch.randn(6, 4), torch.randn(6)
    whole = nn.functional.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=3, groups=6)[
        ..., :9
    ]
    for backend in ("torch", "numba"):
        out = causal_conv1d(x, weight, bias, backend=backend)
        torch.testing.assert_close(out, nn.functional.silu(whole).transpose(1, 2))


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_outputs_and_gradients_are_zero_beyond_lengths(backend: str) -> None:
    x, lengths = torch.randn(2, 12, 5), torch.tensor([7, 0])
    x[0, 7:] = x[1] = float("nan")
    x.requires_grad_()
    out = causal_conv1d(x, torch.randn(5, 3), torch.ones(5), lengths, backend)
    out.sum().backward()
    assert x.grad is not None
    assert out.isfinite().all()
    assert not out[0, 7:].any()
    assert not out[1].any()
    assert not x.grad[0, 7:].any()
    assert x.grad[0, :7].all()


def test_strided_input_and_half_precision() -> None:
    packed = torch.randn(2, 40, 48)
    x, weight, bias = packed[..., 10:34], torch.randn(24, 4), torch.randn(24)
    want = causal_conv1d(x.double(), weight.double(), bias.double(), backend="torch")
    got = causal_conv1d(x, weight, bias, backend="numba")
    assert_close([got], [want])
    low = causal_conv1d(x.bfloat16(), weight, bias, backend="numba")
    assert low.dtype == torch.bfloat16
    assert_close([low], [want], tolerance=1e-2)


def test_bfloat16_is_rounded_only_where_it_is_read_and_written() -> None:
    leaves = [torch.randn(2, 40, 18).bfloat16(), torch.randn(18, 4), torch.randn(18)]
    grad, results = torch.randn(2, 40, 18).bfloat16(), []
    for wide in (torch.bfloat16, torch.float32):
        inputs = [leaves[0].to(wide), *(x.clone() for x in leaves[1:])]
        inputs = [x.requires_grad_() for x in inputs]
        out = causal_conv1d(*inputs, lengths=torch.tensor([40, 13]), backend="numba")
        results.append([out, *torch.autograd.grad(out, inputs, grad.to(wide))])
    short, exact = results
    want = [x.to(y.dtype).double() for x, y in zip(exact, short, strict=True)]
    # One more rounding would cost 1e-3.
    assert_close(short, want, tolerance=1e-4)
    assert [x.dtype for x in short] == [torch.bfloat16] * 2 + [torch.float32] * 2


def test_operator_passes_opcheck() -> None:
    from kinopoisk_ft.ops.conv.cpu import conv

    leaves = [torch.randn(2, 9, 6), torch.randn(6, 4), torch.randn(6)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor",
              "test_aot_dispatch_static")  # fmt: skip
    args = (*(x.requires_grad_() for x in leaves), torch.tensor([9, 4]))
    torch.library.opcheck(conv, args, test_utils=checks)
    half = leaves[0].detach().bfloat16().requires_grad_()
    torch.library.opcheck(conv, (half, *args[1:]), test_utils=checks)
    meta = causal_conv1d(*(x.detach().to("meta") for x in leaves))
    assert meta.shape == (2, 9, 6)
    assert meta.is_meta


def test_invalid_arguments_raise() -> None:
    with pytest.raises(ValueError, match="must be"):
        causal_conv1d(torch.randn(2, 9, 6), torch.randn(5, 4))
    with pytest.raises(ValueError, match="must be"):
        causal_conv1d(torch.randn(2, 9, 0), torch.randn(0, 4))
    with pytest.raises(ValueError, match=r"bias must be of shape \(6,\), not \(5,\)"):
        causal_conv1d(torch.randn(2, 9, 6), torch.randn(6, 4), torch.randn(5))
    with pytest.raises(ValueError, match=r"lengths must be of shape \(2,\), not \(1,\)"):
        causal_conv1d(torch.randn(2, 9, 6), torch.randn(6, 4), lengths=torch.tensor([9]))
    with pytest.raises(UserError, match="did you mean 'numba'"):
        causal_conv1d(torch.randn(2, 9, 6), torch.randn(6, 4), backend="nunba")
    with pytest.raises(UserError, match=r"pip install .*causal-conv1d"):
        causal_conv1d(torch.randn(2, 9, 6), torch.randn(6, 4), backend="cuda")


def test_gpu_kernel_is_used_only_if_its_self_test_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    device, package = torch.device("cpu"), conv_cuda.PACKAGE
    assert package.diagnose(device) == "causal-conv1d is not installed"
    stand_ins.causal_conv1d(monkeypatch)
    assert package.diagnose(device) is None
    stand_ins.causal_conv1d(monkeypatch, bias_scale=0.9)
    problem = package.diagnose(device)
    assert problem is not None
    assert "differs from the reference in values" in problem
    stand_ins.causal_conv1d_without_kernel(monkeypatch)
    problem = package.diagnose(device)
    assert problem == "causal-conv1d is installed without its compiled module causal_conv1d_cuda"
    assert "CAUSAL_CONV1D_FORCE_BUILD=TRUE" in package.get_install_command()


@pytest.mark.parametrize(("backend", "device"), [("cuda", "cpu"), on_gpu("torch"), on_gpu("cuda")])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_gpu_kernel_agrees_with_conv1d(
    backend: str, device: str, width: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "cuda":
        require_package(conv_cuda.PACKAGE, device, monkeypatch, stand_ins.causal_conv1d)
    x = torch.randn(3, 12, 10)
    x[1, 5:] = float("nan")
    inputs = [x, torch.randn(5, width)] + ([torch.randn(5)] if bias else [])
    # Strided, like half of a projection.
    inputs[0] = x[..., 3:8]
    grad, lengths = torch.randn(3, 12, 5), torch.tensor([12, 5, 0])
    placed = [x.to(device) for x in inputs]
    got = run(placed, grad.to(device), lengths=lengths.to(device), backend=backend)
    exact = [x.double() for x in inputs]
    want = run(exact, grad.double(), lengths=lengths, backend="torch")
    # cuDNN's convolution rounds to TF32.
    assert_close(got, want, 1e-5 if device == "cpu" else 1e-3)


@pytest.mark.parametrize("taps", [1, 5])
def test_gpu_kernel_is_not_used_for_other_taps(taps: int) -> None:
    x, weight = torch.randn(2, 9, 6), torch.randn(6, taps)
    seen: list[str | None] = []

    def choose(*args: object, **_: object) -> str:
        seen.append(str(args[-1]))
        return "torch"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_op, "choose_backend", choose)
        causal_conv1d(x, weight)
        causal_conv1d(x, torch.randn(6, 4))
    assert seen == [f"it supports 2 to 4 taps, not {taps}", "None"]
