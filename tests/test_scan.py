"""The selective scan: every backend against the definition in float64, in values and gradients."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.ops import backends, scan_cuda
from kinopoisk_ft.ops.scan_reference import selective_scan_reference
from kinopoisk_ft.ops.selective_scan import selective_scan

BACKENDS = ("reference", "torch", "numba")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
        "delta_bias": normal(width),
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
    """Compare norms; `floor`: the least size per element that an error is held against."""
    assert got.keys() == want.keys()
    for name, exact in want.items():
        assert got[name].isfinite().all(), name
        scale = max(exact.norm().item(), floor * exact.numel() ** 0.5) or 1.0
        error = (got[name].double() - exact).norm().item() / scale
        assert error < tolerance, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (3, 37, 20, 5), (2, 64, 130, 16), (1, 33, 7, 1)])
def test_agrees_with_float64(backend: str, softplus: bool, shape: tuple[int, ...]) -> None:
    inputs = draw(*shape)
    if not softplus:
        inputs["delta"] = inputs["delta"].exp()
        inputs["delta_bias"] = inputs["delta_bias"].abs()
    grad = torch.randn(shape[:3])
    got = run(selective_scan, inputs, grad, delta_softplus=softplus, backend=backend)
    assert_close(got, expected(inputs, grad, delta_softplus=softplus))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_optional_inputs_may_be_absent(backend: str, absent: tuple[str, ...]) -> None:
    inputs = {name: x for name, x in draw(2, 35, 24, 4).items() if name not in absent}
    grad = torch.randn(2, 35, 24)
    got = run(selective_scan, inputs, grad, delta_softplus=True, backend=backend)
    assert_close(got, expected(inputs, grad, delta_softplus=True))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 4), length=st.integers(1, 70), width=st.integers(1, 140),
    states=st.integers(1, 18), seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
def test_numba_agrees_on_random_shapes_and_lengths(
    batch: int, length: int, width: int, states: int, seed: int, data: st.DataObject
) -> None:
    rows = st.lists(st.integers(0, length), min_size=batch, max_size=batch)
    lengths = torch.tensor(data.draw(rows), dtype=torch.int32)
    inputs, grad = draw(batch, length, width, states, seed), torch.randn(batch, length, width)
    options = {"delta_softplus": True, "lengths": lengths}
    got = run(selective_scan, inputs, grad, backend="numba", **options)
    assert_close(got, expected(inputs, grad, **options), floor=0.05)  # a sum of few may cancel


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_flows_beyond_lengths(backend: str) -> None:
    lengths = torch.tensor([50, 0, 13])
    inputs, grad = draw(3, 50, 18, 4), torch.randn(3, 50, 18)
    padded = {name: x.clone() for name, x in inputs.items()}
    for name in ("u", "delta", "B", "C", "z"):
        for row, length in enumerate(lengths):
            padded[name][row, length:] = float("nan")
    got = run(selective_scan, padded, grad, delta_softplus=True, lengths=lengths, backend=backend)
    assert_close(got, expected(inputs, grad, delta_softplus=True, lengths=lengths))
    assert not got["out"][2, 13:].any()
    assert not got["u"][2, 13:].any()
    short = {name: x[2:, :13] if x.dim() == 3 else x for name, x in inputs.items()}
    alone = selective_scan(**short, delta_softplus=True, backend=backend)
    torch.testing.assert_close(got["out"][2:, :13], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("level", [-30.0, -12.0, 25.0, 90.0])
def test_tiny_and_huge_steps(backend: str, level: float) -> None:
    inputs, grad = draw(2, 40, 16, 8), torch.randn(2, 40, 16)
    inputs["delta"] = torch.full((2, 40, 16), level)
    got = run(selective_scan, inputs, grad, delta_softplus=True, backend=backend)
    assert_close(got, expected(inputs, grad, delta_softplus=True), tolerance=2e-5)


def test_long_memory() -> None:
    """A decay within 2e-4 of one over 4,000 steps: float32 itself allows an error of 1e-4."""
    inputs, grad = draw(1, 4000, 16, 2), torch.randn(1, 4000, 16)
    inputs["A"] = torch.full((16, 2), -1e-2)
    inputs["delta"] = torch.full((1, 4000, 16), -4.0)
    inputs["delta_bias"] = torch.zeros(16)
    got = run(selective_scan, inputs, grad, delta_softplus=True, backend="numba")
    assert_close(got, expected(inputs, grad, delta_softplus=True), tolerance=1e-4)


def test_not_a_number_is_not_hidden() -> None:
    inputs = draw(1, 4, 16, 4)
    inputs["delta"][0, 1, 3] = float("nan")
    out = selective_scan(**inputs, delta_softplus=True, backend="numba")
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
    out = selective_scan(**leaves, delta_softplus=True, backend=backend)
    grads = torch.autograd.grad(out, list(leaves.values()), grad)
    want = expected(strided, grad, delta_softplus=True)
    assert_close({"out": out, **dict(zip(leaves, grads, strict=True))}, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_gradient_of_a_sum(backend: str) -> None:
    inputs = draw(2, 5, 16, 4)
    u = inputs.pop("u").requires_grad_()
    selective_scan(u, **inputs, delta_softplus=True, backend=backend).sum().backward()
    assert u.grad is not None
    assert u.grad.isfinite().all()


def test_result_does_not_depend_on_threads() -> None:
    inputs, grad = draw(3, 50, 160, 16), torch.randn(3, 50, 160)
    lengths, threads = torch.tensor([50, 20, 3]), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            options = {"delta_softplus": True, "lengths": lengths, "backend": "numba"}
            results.append(run(selective_scan, inputs, grad, **options))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(other[name], x) for name, x in results[0].items())


@pytest.mark.parametrize(("backend", "most"), [("numba", 9), ("torch", 20)])
def test_memory_does_not_grow_with_length_times_states(backend: str, most: float) -> None:
    """What is kept for the backward, in units of u, with 64 states: 64 would be every state."""
    inputs = {name: x.requires_grad_() for name, x in draw(1, 512, 64, 64).items()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        selective_scan(**inputs, delta_softplus=True, backend=backend)
    u = inputs["u"]
    assert sum(kept.values()) < most * u.numel() * u.element_size()


def test_threads_without_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    from kinopoisk_ft.ops import threads

    inputs, grad = draw(2, 40, 160, 4), torch.randn(2, 40, 160)
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    got = run(selective_scan, inputs, grad, delta_softplus=True, backend="numba")
    assert_close(got, expected(inputs, grad, delta_softplus=True))


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend: str, dtype: torch.dtype) -> None:
    inputs = {name: x.to(dtype) for name, x in draw(2, 40, 16, 4).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(
            selective_scan, inputs, torch.ones(2, 40, 16), delta_softplus=True, backend=backend
        )
    assert all(x.dtype == dtype for x in got.values())
    want = expected(inputs, torch.ones(2, 40, 16), delta_softplus=True)
    assert_close(got, want, tolerance=1e-2)


def test_reference_and_torch_pass_gradcheck() -> None:
    inputs = [x.double().requires_grad_() for x in draw(2, 3, 2, 2).values()]
    assert torch.autograd.gradcheck(lambda *x: selective_scan_reference(*x, True), inputs)
    assert torch.autograd.gradcheck(
        lambda *x: selective_scan(*x, True, lengths=torch.tensor([3, 1]), backend="torch"), inputs
    )


def test_operator_is_known_to_pytorch() -> None:
    from kinopoisk_ft.ops.scan_numba import scan

    for absent in (False, True):
        inputs = draw(2, 9, 18, 3)
        tensors = [None if absent and name in ("D", "z") else x for name, x in inputs.items()]
        leaves = [None if x is None else x.requires_grad_() for x in tensors]
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        lengths = torch.tensor([9, 4]) if absent else None
        torch.library.opcheck(scan, (*leaves, lengths, True, True), test_utils=checks)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_meta_tensors(backend: str) -> None:
    inputs = {name: x.to("meta").requires_grad_() for name, x in draw(2, 9, 18, 3).items()}
    out = selective_scan(**inputs, delta_softplus=True, backend=backend)
    assert out.shape == (2, 9, 18)
    assert out.device.type == "meta"
    out.sum().backward()
    assert all(x.grad is not None and x.grad.shape == x.shape for x in inputs.values())


def test_compiles_without_graph_breaks() -> None:
    inputs, grad = draw(2, 9, 18, 3), torch.randn(2, 9, 18)
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    options = {"delta_softplus": True, "lengths": torch.tensor([9, 4])}
    assert_close(run(compiled, inputs, grad, **options), expected(inputs, grad, **options))


def test_auto_says_what_it_took(caplog: pytest.LogCaptureFixture) -> None:
    backends._announced.clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            selective_scan(**draw(1, 2, 3, 4))
    assert [r.message for r in caplog.records] == ["selective_scan runs by backend 'numba' on cpu"]


def test_auto_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "NUMBA_ERROR", "No module named 'numba'")
    cpu = torch.device("cpu")
    assert (
        backends.choose("selective_scan", "auto", ("auto", *BACKENDS), cpu, torch.float32)
        == "torch"
    )
    with pytest.raises(UserError, match="pip install 'numba"):
        selective_scan(**draw(1, 2, 3, 4), backend="numba")


def test_backend_that_cannot_run_is_refused() -> None:
    with pytest.raises(UserError, match=r"kinopoisk-ft\[cuda\]"):
        selective_scan(**draw(1, 2, 3, 4), backend="cuda")
    with pytest.raises(UserError, match="float64"):
        selective_scan(**{k: x.double() for k, x in draw(1, 2, 3, 4).items()}, backend="numba")
    with pytest.raises(UserError, match="did you mean 'numba'"):
        selective_scan(**draw(1, 2, 3, 4), backend="nunba")


@pytest.mark.parametrize(("name", "shape"), [("delta", (1, 2, 4)), ("B", (1, 2, 3)), ("D", (4,))])
def test_shapes_are_checked(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{name} must be of shape"):
        selective_scan(**{**draw(1, 2, 3, 4), name: torch.zeros(shape)})


def _install_mamba_ssm(monkeypatch: pytest.MonkeyPatch, skip_scale: float) -> None:
    """Put a stand-in for mamba-ssm in place, with its layout (time last)."""

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor,
             bias: Tensor, softplus: bool) -> Tensor:  # fmt: skip
        u, delta, B, C, z = (x.transpose(1, 2) for x in (u, delta, B, C, z))
        y = selective_scan_reference(u, delta, A, B, C, D * skip_scale, z, bias, softplus)
        return y.transpose(1, 2)

    names = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
    for name in names:
        module = types.ModuleType(name)
        module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec(name, None)
        module.selective_scan_fn = scan  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    scan_cuda.self_test.cache_clear()


def test_gpu_kernel_is_taken_only_if_its_self_test_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    assert scan_cuda.self_test(device) == "mamba-ssm is not installed"
    _install_mamba_ssm(monkeypatch, skip_scale=1.0)
    assert scan_cuda.self_test(device) is None
    _install_mamba_ssm(monkeypatch, skip_scale=1.1)
    assert scan_cuda.self_test(device) == "mamba-ssm differs from the reference on cpu"
    scan_cuda.self_test.cache_clear()
