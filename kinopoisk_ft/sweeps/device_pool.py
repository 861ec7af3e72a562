"""GPUs of a machine dealt out to processes that train side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout


@contextmanager
def own_device(folder: Path) -> Iterator[int | None]:
    """While entered, `cuda` means the CUDA device that the fewest others of the folder have.

    Gives its number; None where there are not several. A place on a device is a locked file, and
    the system frees it however the process ends.
    """
    devices = torch.cuda.device_count()
    if devices < 2:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        place, device = divmod(number, devices)
        lock = FileLock(folder / f"gpu-{device}.{place}.lock")
        try:
            held = lock.acquire(blocking=False)
        except Timeout:
            continue
        with held:
            torch.cuda.set_device(device)
            yield device
        return
