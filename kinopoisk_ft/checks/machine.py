"""Devices, threads, precision and memory, and the versions of what results depend on."""

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
from kinopoisk_ft.training.device import choose_device, keep_freed_memory
from kinopoisk_ft.training.precision import choose_precision

# What a run does without, and the line that brings it.
SPARED = {"kinopoisk-ft": "pip install --editable . (in the checkout)", "numba": NUMBA_FIX}


def packages() -> Iterator[Finding]:
    """Name the version of each key package."""
    for name, version in get_versions().items():
        needed = name not in SPARED
        if version:
            yield Finding(name, "ok", version, needed)
        else:
            fix = SPARED.get(name, f"pip install {name}")
            yield Finding(name, "missing", "it is not installed", needed, fix)


def devices() -> Iterator[Finding]:
    """Name the devices, the one that `trainer.device=auto` takes, and the threads."""
    memory = psutil.virtual_memory().total / 2**30
    instructions = torch.backends.cpu.get_cpu_capability()
    yield Finding("cpu", "ok", f"{get_processor()}, {memory:.1f} GiB, {instructions}", needed=True)
    yield from _gpus()
    taken = choose_device("auto")
    yield Finding("trainer.device=auto", "ok", f"takes {taken.type}", needed=True)
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS")
    limited = f" (OMP_NUM_THREADS={limit})" if limit else ""
    yield Finding("threads", "ok", f"{torch.get_num_threads()} on {free} cores{limited}")


def _gpus() -> Iterator[Finding]:
    for i in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(i)
        detail = f"{found.name}, {found.total_memory / 2**30:.1f} GiB, "
        detail += f"compute capability {found.major}.{found.minor}, CUDA {torch.version.cuda}"
        yield Finding(f"cuda:{i}", "ok", detail)
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple's GPU")
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        if torch.version.cuda:
            detail = f"nvidia-smi is here, and torch (CUDA {torch.version.cuda}) finds no GPU"
            fix = "look at what nvidia-smi says of the driver; unset CUDA_VISIBLE_DEVICES"
        else:
            detail = f"nvidia-smi is here, and torch {torch.__version__} is a build without CUDA"
            fix = "https://pytorch.org/get-started/locally"
            if sys.platform == "linux":
                fix = "pip install --force-reinstall --index-url https://pypi.org/simple torch"
        yield Finding("cuda", "broken", detail, fix=fix)


@cache
def automatic() -> tuple[torch.device, str, str]:
    """Return the device and precision that `auto` takes, and why."""
    device = choose_device("auto")
    return device, *choose_precision("auto", device)


def precision() -> Iterator[Finding]:
    """Name what `trainer.precision=auto` takes, why, and how to take another."""
    _, kind, reason = automatic()
    detail = f"takes {kind}: {reason}; the hardware decides, each time alike: nothing is stored"
    detail += ", and trainer.precision=fp32, bf16 or fp16 overrides it"
    yield Finding("trainer.precision=auto", "ok", detail, needed=True)


def memory() -> Iterator[Finding]:
    """Tell whether freed memory can be kept, and where compiled kernels are."""
    if keep_freed_memory():
        yield Finding("allocator", "ok", "glibc's thresholds can be raised: freed memory is kept")
    else:
        detail = "no glibc here, or it refuses: trainer.keep_memory does nothing"
        yield Finding("allocator", "missing", detail)
    if NUMBA_ERROR is None:
        yield _kernel_cache()


def _kernel_cache() -> Finding:
    from kinopoisk_ft.ops.simd import kernel_cache

    folder = kernel_cache.find_folder()
    if folder is None:
        detail = "no folder for it can be written: each process compiles the kernels anew"
        fix = "export NUMBA_CACHE_DIR=<a folder that can be written>"
        return Finding("kernel cache", "broken", detail, fix=fix)
    kept = len(list(folder.rglob("*.nbc")))
    return Finding("kernel cache", "ok", f"{folder} can be written; files of kernels: {kept}")
