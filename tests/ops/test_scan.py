"""Test the selective scan: values and gradients of every backend against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import stand_ins
import torch
from gpu import on_gpu, require_package
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import BACKENDS, assert_close, draw, expected, run
from torch import Tensor

from kinopoisk_ft.ops.scan.cuda import PACKAGE
from kinopoisk_ft.ops.scan.op import selective_scan
from kinopoisk_ft.ops.scan.reference import selective_scan_reference


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


PLACES = [*((name, "cpu") for name in BACKENDS), on_gpu("torch"), on_gpu("cuda")]
# Kernels of a GPU approximate exponentials.
TOLERANCES = {"cpu": 1e-5, "cuda": 1e-3}


@pytest.fixture
def place(
    backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return a function that moves inputs to the device."""
    if backend == "cuda":
        require_package(PACKAGE, device, monkeypatch, stand_ins.mamba_ssm)
    return lambda inputs: {name: x.to(device) for name, x in inputs.items()}


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (3, 37, 20, 5), (2, 64, 130, 16), (1, 33, 7, 1)])
def test_agrees_with_float64(backend: str, device: str, shape: tuple[int, ...], place: Any) -> None:
    inputs, grad = draw(*shape), torch.randn(shape[:3])
    got = run(selective_scan, place(inputs), grad.to(device), backend=backend)
    assert_close(got, expected(inputs, grad), TOLERANCES[device])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 4), length=st.integers(1, 70), width=st.integers(1, 140),
    states=st.integers(1, 18), seed=st.integers(0, 99), data=st.data(),
    backend=st.sampled_from(["numba", "torch"]), level=st.sampled_from([0, 0, -28, 20, 90]),
    padded=st.booleans(),
)  # fmt: skip
def test_agrees_on_random_problems(
    batch: int, length: int, width: int, states: int, seed: int, data: st.DataObject, backend: str,
    level: float, padded: bool,
) -> None:  # fmt: skip
    """Try rows without a token, and steps from 1e-13 to 90."""
    inputs, grad = draw(batch, length, width, states, seed), torch.randn(batch, length, width)
    inputs["delta"] += level
    options: dict[str, object] = {}
    if padded:
        rows = st.lists(st.integers(0, length), min_size=batch, max_size=batch)
        options["lengths"] = torch.tensor(data.draw(rows), dtype=torch.int32)
    got = run(selective_scan, inputs, grad, backend=backend, **options)
    want = expected(inputs, grad, **options)
    # A sum of few terms may cancel.
    assert_close(got, want, floor=0.05 if level == 0 else 0.0)


@pytest.mark.parametrize(("backend", "device"), PLACES)
def test_outputs_and_gradients_are_zero_beyond_lengths(
    backend: str, device: str, place: Any
) -> None:
    lengths = torch.tensor([50, 0, 13])
    inputs, grad = draw(3, 50, 18, 4), torch.randn(3, 50, 18)
    padded = {name: x.clone() for name, x in inputs.items()}
    for name in ("u", "delta", "B", "C", "z"):
        for row, length in enumerate(lengths):
            padded[name][row, length:] = float("nan")
    options: dict[str, Any] = {"backend": backend}
    got = run(selective_scan, place(padded), grad.to(device), lengths=lengths.to(device), **options)
    want = expected(inputs, grad, lengths=lengths)
    assert_close(got, want, TOLERANCES[device])
    assert not got["out"][2, 13:].any()
    assert not got["u"][2, 13:].any()
    short = {name: x[2:, :13] if x.dim() == 3 else x for name, x in inputs.items()}
    unpadded = selective_scan(**place(short), **options)
    torch.testing.assert_close(
        got["out"][2:, :13], unpadded, rtol=TOLERANCES[device], atol=TOLERANCES[device] / 10
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", [-30.0, -12.0, 25.0, 90.0])
def test_tiny_and_huge_steps(backend: str, level: float) -> None:
    inputs, grad = draw(2, 40, 16, 8), torch.randn(2, 40, 16)
    inputs["delta"] = torch.full((2, 40, 16), level)
    got = run(selective_scan, inputs, grad, backend=backend)
    assert_close(got, expected(inputs, grad))


def test_long_memory() -> None:
    """Decays differ from one by 2e-4 for 4,000 steps: float32 causes an error of up to 1e-4."""
    inputs, grad = draw(1, 4000, 16, 2), torch.randn(1, 4000, 16)
    inputs["A"] = torch.full((16, 2), -1e-2)
    inputs["delta"] = torch.full((1, 4000, 16), -4.0)
    got = run(selective_scan, inputs, grad, backend="numba")
    assert_close(got, expected(inputs, grad), tolerance=1e-4)


def test_nan_is_passed_on() -> None:
    inputs = draw(1, 4, 16, 4)
    inputs["delta"][0, 1, 3] = float("nan")
    out = selective_scan(**inputs, backend="numba")
    assert out[0, 1:, 3].isnan().all()
    assert out[..., 4:].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs(backend: str) -> None:
    packed = torch.randn(2, 40, 2 * 24 + 2 * 6)
    u, z, B, C = packed.split([24, 24, 6, 6], dim=2)
    plain = draw(2, 40, 24, 6)
    grad = torch.randn(24, 40, 2).permute(2, 1, 0)
    transposed = plain["delta"].transpose(1, 2).contiguous().transpose(1, 2)
    strided = {**plain, "u": u, "z": z, "B": B, "C": C, "delta": transposed}
    leaves = {name: x.detach().requires_grad_() for name, x in strided.items()}
    assert not leaves["u"].is_contiguous()
    out = selective_scan(**leaves, backend=backend)
    grads = torch.autograd.grad(out, list(leaves.values()), grad)
    want = expected(strided, grad)
    assert_close({"out": out, **dict(zip(leaves, grads, strict=True))}, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_gradient_of_a_sum(backend: str) -> None:
    inputs = draw(2, 5, 16, 4)
    u = inputs.pop("u").requires_grad_()
    selective_scan(u, **inputs, backend=backend).sum().backward()
    assert u.grad is not None
    assert u.grad.isfinite().all()


def test_result_does_not_depend_on_threads() -> None:
    inputs, grad = draw(3, 50, 160, 16), torch.randn(3, 50, 160)
    lengths, simd_threads = torch.tensor([50, 20, 3]), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            options = {"lengths": lengths, "backend": "numba"}
            results.append(run(selective_scan, inputs, grad, **options))
    finally:
        torch.set_num_threads(simd_threads)
    for other in results[1:]:
        assert all(torch.equal(other[name], x) for name, x in results[0].items())


@pytest.mark.parametrize(("backend", "most"), [("numba", 9), ("torch", 20)])
def test_memory_does_not_grow_with_length_times_states(backend: str, most: float) -> None:
    """Saved memory is measured in multiples of the size of u; 64 stored states would give 64."""
    inputs = {name: x.requires_grad_() for name, x in draw(1, 512, 64, 64).items()}
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        selective_scan(**inputs, backend=backend)
    u = inputs["u"]
    assert sum(saved.values()) < most * u.numel() * u.element_size()


def test_threads_without_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    from kinopoisk_ft.ops.simd import threads as simd_threads

    inputs, grad = draw(2, 40, 160, 4), torch.randn(2, 40, 160)
    monkeypatch.setattr(simd_threads, "_find_openmp", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    got = run(selective_scan, inputs, grad, backend="numba")
    assert_close(got, expected(inputs, grad))


def test_reference_and_torch_pass_gradcheck() -> None:
    inputs = [x.double().requires_grad_() for x in draw(2, 3, 2, 2).values()]
    assert torch.autograd.gradcheck(selective_scan_reference, inputs)
    assert torch.autograd.gradcheck(
        lambda *x: selective_scan(*x, lengths=torch.tensor([3, 1]), backend="torch"), inputs
    )
