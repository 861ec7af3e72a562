"""Test the selective scan as an operator: precision, compilation and choice of a backend."""

from __future__ import annotations

import pytest
import stand_ins
import torch
from scan_cases import BACKENDS, assert_close, draw, expected, run

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.ops import backends, gpu_package
from kinopoisk_ft.ops.conv import op as conv
from kinopoisk_ft.ops.gpu_package import GpuPackage
from kinopoisk_ft.ops.scan import cuda as scan_cuda
from kinopoisk_ft.ops.scan.op import selective_scan


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend: str, dtype: torch.dtype) -> None:
    inputs = {name: x.to(dtype) for name, x in draw(2, 40, 16, 4).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(selective_scan, inputs, torch.ones(2, 40, 16), backend=backend)
    assert all(x.dtype == dtype for x in got.values())
    want = expected(inputs, torch.ones(2, 40, 16))
    assert_close(got, want, tolerance=1e-2)


def test_bfloat16_is_rounded_only_where_it_is_read_and_written() -> None:
    inputs, grad = draw(2, 40, 18, 4), torch.randn(2, 40, 18).bfloat16()
    short = {name: x.bfloat16() if name in ("u", "z") else x for name, x in inputs.items()}
    options: dict[str, object] = {"lengths": torch.tensor([40, 13])}
    got = run(selective_scan, short, grad, backend="numba", **options)
    widened = {name: x.float() for name, x in short.items()}
    want = run(selective_scan, widened, grad.float(), backend="numba", **options)
    for name in want:
        dtype = torch.bfloat16 if name in ("out", "u", "z") else torch.float32
        assert got[name].dtype == dtype
        want[name] = want[name].to(dtype).double()
    # One more rounding would cost 1e-3.
    assert_close(got, want, tolerance=1e-4)


def test_operator_passes_opcheck() -> None:
    from kinopoisk_ft.ops.scan.cpu import scan

    checks = ("test_schema", "test_autograd_registration", "test_faketensor",
              "test_aot_dispatch_static")  # fmt: skip
    for lengths in (None, torch.tensor([9, 4])):
        for dtype in (torch.float32, torch.bfloat16):
            inputs = draw(2, 9, 18, 3)
            inputs |= {name: inputs[name].to(dtype) for name in ("u", "z")}
            leaves = [x.requires_grad_() for x in inputs.values()]
            torch.library.opcheck(scan, (*leaves, lengths, True), test_utils=checks)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_meta_tensors(backend: str) -> None:
    inputs = {name: x.to("meta").requires_grad_() for name, x in draw(2, 9, 18, 3).items()}
    out = selective_scan(**inputs, backend=backend)
    assert out.shape == (2, 9, 18)
    assert out.device.type == "meta"
    out.sum().backward()
    assert all(x.grad is not None and x.grad.shape == x.shape for x in inputs.values())


def test_compiles_without_graph_breaks() -> None:
    inputs, grad = draw(2, 9, 18, 3), torch.randn(2, 9, 18)
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    options = {"lengths": torch.tensor([9, 4])}
    assert_close(run(compiled, inputs, grad, **options), expected(inputs, grad, **options))


def test_auto_logs_its_choice_once(caplog: pytest.LogCaptureFixture) -> None:
    backends._log_once.cache_clear()
    with caplog.at_level("DEBUG"):
        for _ in range(2):
            selective_scan(**draw(1, 2, 3, 4))
    assert [r.message for r in caplog.records] == ["selective_scan uses backend 'numba' on cpu"]


def test_auto_uses_pytorch_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "NUMBA_ERROR", "No module named 'numba'")
    cpu = torch.device("cpu")
    assert (
        backends.choose_backend("selective_scan", "auto", ("auto", *BACKENDS), cpu, torch.float32)
        == "torch"
    )
    with pytest.raises(UserError, match="pip install 'numba"):
        selective_scan(**draw(1, 2, 3, 4), backend="numba")


def test_backend_that_cannot_run_raises() -> None:
    with pytest.raises(UserError, match=r"pip install .*mamba-ssm"):
        selective_scan(**draw(1, 2, 3, 4), backend="cuda")
    with pytest.raises(UserError, match="float64"):
        selective_scan(**{k: x.double() for k, x in draw(1, 2, 3, 4).items()}, backend="numba")
    with pytest.raises(UserError, match="did you mean 'numba'"):
        selective_scan(**draw(1, 2, 3, 4), backend="nunba")


@pytest.mark.parametrize(("name", "shape"), [("delta", (1, 2, 4)), ("B", (1, 2, 3)), ("D", (4,))])
def test_shapes_are_checked(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{name} must be of shape"):
        selective_scan(**{**draw(1, 2, 3, 4), name: torch.zeros(shape)})
    with pytest.raises(ValueError, match="u must be of shape"):
        selective_scan(**draw(2, 5, 0, 4))


def test_gpu_kernel_is_used_only_if_its_self_test_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    device, package = torch.device("cpu"), scan_cuda.PACKAGE
    assert package.diagnose(device) == "mamba-ssm is not installed"
    stand_ins.mamba_ssm(monkeypatch)
    assert package.diagnose(device) is None
    # The first prediction runs the self-test in such a context.
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert package.diagnose(device) is None
    stand_ins.mamba_ssm(monkeypatch, skip_scale=1.1)
    problem = package.diagnose(device)
    assert problem is not None
    assert problem == (
        "mamba-ssm fails its self-test on cpu: it differs from the reference in "
        "values, gradient of u, gradient of D, gradient of z at length 40"
    )


def test_package_without_its_compiled_kernel_is_logged_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = scan_cuda.PACKAGE
    assert "--force-reinstall" not in package.get_install_command()
    stand_ins.mamba_ssm_without_kernel(monkeypatch)
    caplog.set_level("INFO", logger="kinopoisk_ft")
    for _ in range(2):
        problem = gpu_package.find_problem(package, torch.device("cpu"))
        assert problem == "mamba-ssm is installed without its compiled module selective_scan_cuda"
    assert len(caplog.records) == 1
    assert "MAMBA_KEEP_CUDA_BUILD=TRUE" in caplog.text
    assert "--force-reinstall" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("installed", [True, False])
def test_auto_on_a_gpu_uses_each_kernel_that_works(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, scans = torch.device("cuda"), ("auto", *BACKENDS, "cuda")
    monkeypatch.setattr(GpuPackage, "is_installed", lambda package: installed)
    monkeypatch.setattr(GpuPackage, "diagnose", lambda package, device: None if installed else "no")
    gpu_package.find_problem.cache_clear()
    for operator, names in (("selective_scan", scans), ("causal_conv1d", conv.BACKENDS)):
        chosen = backends.choose_backend(operator, "auto", names, gpu, torch.float32)
        assert chosen == ("cuda" if installed else "torch")
        assert backends.choose_backend(operator, "auto", names, gpu, torch.float64) == "torch"
        assert (
            backends.choose_backend(operator, "auto", names, gpu, torch.float32, "5 taps")
            == "torch"
        )
    gpu_package.find_problem.cache_clear()
