"""Check packages, devices, threads, precision, memory and the kernel cache."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from functools import cache

import psutil
import torch

from kinopoisk_ft.checks.finding import Finding
from kinopoisk_ft.ops.backends import NUMBA_ERROR, NUMBA_FIX
from kinopoisk_ft.provenance import get_processor, get_versions
from kinopoisk_ft.training.device import choose_device, keep_freed_memory, limit_threads
from kinopoisk_ft.training.precision import choose_precision

# Packages that runs do not need, with the commands that install them.
# The package also runs from a checkout that is not installed, but then it has no version.
OPTIONAL = {"kinopoisk-ft": "pip install --editable . (in the checkout)", "numba": NUMBA_FIX}


def check_packages() -> Iterator[Finding]:
    """Report the package versions."""
    for name, version in get_versions().items():
        needed = name not in OPTIONAL
        if version:
            yield Finding(name, "ok", version, needed)
        else:
            fix = OPTIONAL.get(name, f"pip install {name}")
            yield Finding(name, "missing", "it is not installed", needed, fix)


def check_devices() -> Iterator[Finding]:
    """Report the devices, the number of threads, and the choice of `trainer.device=auto`."""
    gib = psutil.virtual_memory().total / 2**30
    instructions = torch.backends.cpu.get_cpu_capability()
    yield Finding("cpu", "ok", f"{get_processor()}, {gib:.1f} GiB, {instructions}", needed=True)
    yield from _check_gpus()
    taken = choose_device("auto")
    yield Finding("trainer.device=auto", "ok", f"selects {taken.type}", needed=True)
    # `os.cpu_count` also counts CPUs that this process must not use, for example after taskset.
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS")
    limited = f" (OMP_NUM_THREADS={limit})" if limit else " (CPU quota)" * limit_threads()
    yield Finding("threads", "ok", f"{torch.get_num_threads()} on {free} cores{limited}")


def _check_gpus() -> Iterator[Finding]:
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        detail = f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, "
        detail += f"compute capability {gpu.major}.{gpu.minor}, CUDA {torch.version.cuda}"
        yield Finding(f"cuda:{i}", "ok", detail)
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple's GPU")
    # With an NVIDIA driver, `trainer.device=auto` should select the GPU, not the CPU.
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        if torch.version.cuda:
            detail = f"nvidia-smi is installed, but torch (CUDA {torch.version.cuda}) finds no GPU"
            fix = "run nvidia-smi to check the driver, and unset CUDA_VISIBLE_DEVICES"
        else:
            detail = f"nvidia-smi is installed, but torch {torch.__version__} is built without CUDA"
            fix = "https://pytorch.org/get-started/locally"
            if sys.platform == "linux":
                # On Linux, PyPI has wheels with CUDA. Another index may have no such wheel.
                fix = "pip install --force-reinstall --index-url https://pypi.org/simple torch"
        yield Finding("cuda", "broken", detail, fix=fix)


# The result is cached, because both the precision section and the attention section call it.
@cache
def choose_auto() -> tuple[torch.device, str, str]:
    """Return the device and the precision that "auto" selects, and the reason for the precision."""
    device = choose_device("auto")
    return device, *choose_precision("auto", device)


def check_precision() -> Iterator[Finding]:
    """Report which precision `trainer.precision=auto` selects, and why."""
    _, kind, reason = choose_auto()
    detail = f"selects {kind}: {reason}; the choice depends only on the hardware, "
    detail += "and trainer.precision=fp32, bf16 or fp16 overrides it"
    yield Finding("trainer.precision=auto", "ok", detail, needed=True)


def check_memory() -> Iterator[Finding]:
    """Check whether glibc can keep freed memory for reuse.

    Also check whether the folder that caches compiled kernels is writable.
    """
    if keep_freed_memory():
        yield Finding(
            "allocator", "ok", "glibc's thresholds can be raised, so that freed memory is kept"
        )
    else:
        detail = "trainer.keep_memory has no effect: glibc is missing or refuses the thresholds"
        yield Finding("allocator", "missing", detail)
    # The cache contains numba's kernels, and its module cannot be imported without numba.
    if NUMBA_ERROR is None:
        yield _check_kernel_cache()


def _check_kernel_cache() -> Finding:
    from kinopoisk_ft.ops.simd import kernel_cache

    folder = kernel_cache.find_folder()
    if folder is None:
        detail = "no cache folder is writable: each process compiles the kernels again"
        fix = "export NUMBA_CACHE_DIR=<a writable folder>"
        return Finding("kernel cache", "broken", detail, fix=fix)
    # Numba writes one .nbc file for each compiled signature.
    count = len(list(folder.rglob("*.nbc")))
    return Finding("kernel cache", "ok", f"{folder} is writable; compiled kernels: {count}")
