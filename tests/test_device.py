"""The peak of a run is its own, whatever the process did before."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CHECK = """
import torch
from kinopoisk_ft.training.allocator import keep_freed_memory
from kinopoisk_ft.training.device import peak_memory_mb, reset_peak_memory
cpu = torch.device("cpu")
keep_freed_memory()
earlier = [torch.ones(2**18) for _ in range(200)]
last = torch.ones(2**10)  # lies above them: they cannot be cut off the heap's end
del earlier
before = peak_memory_mb(cpu)
reset_peak_memory(cpu)
print(before - peak_memory_mb(cpu))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep")
def test_memory_kept_by_earlier_work_is_not_counted() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 150  # of 200 MiB
