"""Every backend of the scan and the convolution against the definition: agreement and speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from kinopoisk_ft.checks.finding import Finding, told
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

SIZE = (4, 128, 256)  # batch, length, width: a small layer, on which the definition takes ~50 ms
SECONDS = 0.15  # for the timing of one backend
CPU = torch.device("cpu")


def scan() -> Iterator[Finding]:
    """Test the backends of the selective scan."""
    subject, device = scan_reference.SELF_TEST, choose_device("auto")
    yield _auto("selective_scan", scan_op.BACKENDS, device)
    yield numba(subject, partial(scan_op.selective_scan, backend="numba"))
    chunked = partial(scan_op.selective_scan, backend="torch")
    yield examined("torch", subject, chunked, device, needed=True)
    yield packaged(backends.GPU_PACKAGES["selective_scan"], device)


def duality() -> Iterator[Finding]:
    """Test the backends of the scan of Mamba-2."""
    subject, device = ssd_reference.SELF_TEST, choose_device("auto")
    yield _auto("ssd", ssd_op.BACKENDS, device)
    yield examined("torch", subject, partial(ssd_op.ssd, backend="torch"), device, needed=True)
    yield packaged(backends.GPU_PACKAGES["ssd"], device)


def convolution() -> Iterator[Finding]:
    """Test the backends of the causal convolution; PyTorch's own is the definition."""
    subject, device = conv_reference.SELF_TEST, choose_device("auto")
    yield _auto("causal_conv1d", conv_op.BACKENDS, device)
    yield numba(subject, partial(conv_op.causal_conv1d, backend="numba"))
    plain = partial(conv_op.causal_conv1d, backend="torch")
    yield examined("torch", subject, plain, device, needed=True)
    yield packaged(backends.GPU_PACKAGES["causal_conv1d"], device)


def _auto(operator: str, names: tuple[str, ...], device: torch.device) -> Finding:
    taken = backends.choose_backend(operator, "auto", names, device, torch.float32)
    return Finding("auto", "ok", f"takes '{taken}' on {device.type}", needed=True)


def numba(subject: SelfTest, run: Callable[..., Tensor]) -> Finding:
    """Test a kernel that numba compiles for a CPU."""
    if backends.NUMBA_ERROR:
        return Finding("numba", "missing", backends.NUMBA_ERROR, fix=backends.NUMBA_FIX)
    fix = f"{backends.NUMBA_FIX} --force-reinstall --no-deps"
    # where it is installed `auto` takes it on a CPU, untested
    return examined("numba", subject, run, CPU, choose_device("auto").type == "cpu", fix)


def packaged(package: GpuPackage, device: torch.device) -> Finding:
    """Test a package's kernel on a GPU; elsewhere say where its line would be of use."""
    where = "" if device.type == "cuda" else "on a machine with an NVIDIA GPU: "
    if not package.is_installed():
        detail = "it is not installed"
        return Finding(package.name, "missing", detail, fix=where + package.get_install_command())
    wrong = package.diagnose(device)
    if wrong:
        detail = wrong.removeprefix(f"{package.name} ")
        return Finding(package.name, "broken", detail, fix=where + package.get_install_command())
    return examined(package.name, package.self_test, package.run, device)


def examined(
    name: str,
    subject: SelfTest,
    run: Callable[..., Tensor],
    device: torch.device,
    needed: bool = False,
    fix: str | None = None,
) -> Finding:
    """Compare values and gradients, then time both ways."""
    try:
        start = time.perf_counter()
        wrong = subject.find_mismatch(run, device)
        took = time.perf_counter() - start
        if wrong:
            return Finding(name, "broken", f"fails on {device}: {wrong}", needed, fix)
        ratio = _speedup(subject, run, device)
    except Exception as error:
        return Finding(name, "broken", f"fails on {device}: {told(error)}", needed, fix)
    detail = f"agrees with the definition on {device.type}, {ratio:.1f} times its speed"
    if took > 1:
        detail += f"; the first call took {took:.0f} s, to compile"
    return Finding(name, "ok", detail, needed, speedup=round(ratio, 2))


def _speedup(subject: SelfTest, run: Callable[..., Tensor], device: torch.device) -> float:
    """Return the time of the definition over that of `run`, each the least of several in turn."""
    inputs, grad = subject.draw_inputs(*SIZE, device)
    ways = (subject.reference, run)
    times: list[list[float]] = [[], []]
    began = time.perf_counter()
    while len(times[0]) < 3 or time.perf_counter() - began < SECONDS:
        for way, taken in zip(ways, times, strict=True):
            synchronize(device)
            start = time.perf_counter()
            subject.run_backward(way, inputs, grad)
            synchronize(device)
            taken.append(time.perf_counter() - start)
    return min(times[0]) / min(times[1])
