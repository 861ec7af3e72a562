"""Read torchrun's environment variables, without importing PyTorch."""

from __future__ import annotations

import multiprocessing
import os


def is_launched() -> bool:
    """Return whether torchrun started this process."""
    # `torch.distributed.is_torchelastic_launched` tests the same variable.
    return "TORCHELASTIC_RUN_ID" in os.environ


def max_restarts() -> int:
    """Return how often torchrun may restart the processes."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) if is_launched() else 0


def rank() -> int:
    """Return the rank of this process; 0 without torchrun."""
    return int(os.environ["RANK"]) if is_launched() else 0


def world_size() -> int:
    """Return the number of processes of the run; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def is_child_process() -> bool:
    """Return whether torchrun or a process pool started this process."""
    return is_launched() or multiprocessing.parent_process() is not None
