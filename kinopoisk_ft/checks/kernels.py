"""Compare the backends of the scans and the convolution with reference implementations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from kinopoisk_ft.checks.finding import Finding, format_error
from kinopoisk_ft.ops import backends
from kinopoisk_ft.ops.conv import op as conv_op
from kinopoisk_ft.ops.conv import reference as conv_reference
from kinopoisk_ft.ops.gpu_package import GpuPackage
from kinopoisk_ft.ops.scan import op as scan_op
from kinopoisk_ft.ops.scan import reference as scan_reference
from kinopoisk_ft.ops.self_test import SelfTest
from kinopoisk_ft.ops.ssd import op as ssd_op
from kinopoisk_ft.ops.ssd import reference as ssd_reference
from kinopoisk_ft.training.device import choose_device
from kinopoisk_ft.training.precision import synchronize

# Batch size, length and width of a small layer; its reference scan takes about 50 ms.
TIMING_SIZE = (4, 128, 256)
# Seconds for the timing of one backend.
TIMING_SECONDS = 0.15
CPU = torch.device("cpu")


def _check_operator(
    name: str, run: Callable[..., Tensor], names: tuple[str, ...], subject: SelfTest
) -> Iterator[Finding]:
    device = choose_device("auto")
    taken = backends.choose_backend(name, "auto", names, device, torch.float32)
    yield Finding("auto", "ok", f"selects '{taken}' on {device.type}", needed=True)
    # The scan of Mamba-2 has no numba kernel.
    if "numba" in names:
        yield check_numba(subject, partial(run, backend="numba"))
    chunked = partial(run, backend="torch")
    # `auto` selects this backend if no faster one works, so a run needs it.
    yield compare_with_reference("torch", subject, chunked, device, needed=True)
    yield check_gpu_package(backends.GPU_PACKAGES[name], device)


def check_scan() -> Iterator[Finding]:
    """Check the backends of Mamba's selective scan."""
    run, names = scan_op.selective_scan, scan_op.BACKENDS
    return _check_operator("selective_scan", run, names, scan_reference.SELF_TEST)


def check_ssd() -> Iterator[Finding]:
    """Check the backends of Mamba-2's scan (SSD)."""
    return _check_operator("ssd", ssd_op.ssd, ssd_op.BACKENDS, ssd_reference.SELF_TEST)


def check_convolution() -> Iterator[Finding]:
    """Check the backends of the causal convolution."""
    run, names = conv_op.causal_conv1d, conv_op.BACKENDS
    return _check_operator("causal_conv1d", run, names, conv_reference.SELF_TEST)


def check_numba(subject: SelfTest, run: Callable[..., Tensor]) -> Finding:
    """Check whether numba can be used, and whether an operator's numba kernel is correct."""
    if backends.NUMBA_ERROR:
        return Finding("numba", "missing", backends.NUMBA_ERROR, fix=backends.NUMBA_FIX)
    # Without --no-deps, pip would also reinstall NumPy and llvmlite.
    fix = f"{backends.NUMBA_FIX} --force-reinstall --no-deps"
    # On a CPU, `auto` selects numba without a self-test, so a wrong kernel would affect runs.
    return compare_with_reference(
        "numba", subject, run, CPU, choose_device("auto").type == "cpu", fix
    )


def check_gpu_package(package: GpuPackage, device: torch.device) -> Finding:
    """Check whether a GPU package is installed and its kernel is correct."""
    where = "" if device.type == "cuda" else "on a machine with an NVIDIA GPU: "
    if not package.is_installed():
        detail = "it is not installed"
        return Finding(package.name, "missing", detail, fix=where + package.get_install_command())
    wrong = package.diagnose(device)
    if wrong:
        # The finding already begins with the name of the package.
        detail = wrong.removeprefix(f"{package.name} ")
        return Finding(package.name, "broken", detail, fix=where + package.get_install_command())
    return compare_with_reference(package.name, package.self_test, package.run, device)


def compare_with_reference(
    name: str,
    subject: SelfTest,
    run: Callable[..., Tensor],
    device: torch.device,
    needed: bool = False,
    fix: str | None = None,
) -> Finding:
    """Compare values and gradients of a kernel with the reference, and measure the speedup."""
    try:
        start = time.perf_counter()
        wrong = subject.find_mismatch(run, device)
        seconds = time.perf_counter() - start
        if wrong:
            return Finding(name, "broken", f"fails on {device}: {wrong}", needed, fix)
        ratio = _measure_speedup(subject, run, device)
    except Exception as error:
        # A kernel that was built for another GPU or PyTorch version can raise any exception.
        return Finding(name, "broken", f"fails on {device}: {format_error(error)}", needed, fix)
    detail = f"agrees with the reference on {device.type}, {ratio:.1f} times as fast"
    # A first call that takes longer than a second has compiled the kernel.
    if seconds > 1:
        detail += f"; the first call took {seconds:.0f} s for compilation"
    return Finding(name, "ok", detail, needed, speedup=round(ratio, 2))


def _measure_speedup(subject: SelfTest, run: Callable[..., Tensor], device: torch.device) -> float:
    inputs, grad = subject.draw_inputs(*TIMING_SIZE, device)
    functions = (subject.reference, run)
    times: list[list[float]] = [[], []]
    began = time.perf_counter()
    # Both functions run alternately, so that a change of the processor's speed affects both.
    while len(times[0]) < 3 or time.perf_counter() - began < TIMING_SECONDS:
        for function, seconds in zip(functions, times, strict=True):
            # GPU kernels run asynchronously, so wait for them before the clock is read.
            synchronize(device)
            start = time.perf_counter()
            subject.run_backward(function, inputs, grad)
            synchronize(device)
            seconds.append(time.perf_counter() - start)
    # Other programs can only make a call slower, so the shortest time is the most accurate
    # (see `timeit.Timer.repeat` in the Python documentation).
    return min(times[0]) / min(times[1])
