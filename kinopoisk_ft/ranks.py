"""What a process is told by the one that started it, torchrun's above all; nothing heavy."""

from __future__ import annotations

import multiprocessing
import os


def launched() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarts() -> int:
    """Return how often torchrun may start the processes again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) if launched() else 0


def rank() -> int:
    """Return the number of this process among those of the run, 0 for one of its own."""
    return int(os.environ["RANK"]) if launched() else 0


def size() -> int:
    """Return the number of processes of the run."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def is_started() -> bool:
    """Return whether a process that passes signals on started this one: torchrun, or a pool's."""
    return launched() or multiprocessing.parent_process() is not None
