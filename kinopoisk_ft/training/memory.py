"""What to do when memory runs out: the same work again, in smaller parts.

What cannot be told this way is a CPU's memory where the system ends the process without a word:
see `probe`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.allocator import release_freed_memory
from kinopoisk_ft.training.distributed import AloneError, size
from kinopoisk_ft.training.rng import DEVICES, random_states, set_random_states

log = logging.getLogger(__name__)

T = TypeVar("T")
# PyTorch has an exception of its own for its CUDA allocator alone.
MESSAGES = (
    "MPS backend out of memory",
    "CUDA error: out of memory",  # of what does not go through the allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "could not create a primitive",  # all that oneDNN says of a lack of memory
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception tells of a lack of memory, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MESSAGES)


@contextmanager
def told_if_memory_ends(where: str) -> Iterator[None]:
    """Turn a lack of memory into a UserError that says where and what to lower.

    Of several processes it is an AloneError: one may lack what the others have.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        kind = AloneError if size() > 1 else UserError
        raise kind(
            f"memory ran out in {where}: {str(error).splitlines()[0] if str(error) else 'no more'}",
            fix="lower data.max_length, take a smaller model or one whose layers are mostly frozen "
            "(adapter=lora, adapter=freeze), or use trainer.precision=bf16; on a GPU see what else "
            "runs there",
        ) from error


def within_memory(
    work: Callable[[int], T], rows: int, device: torch.device, where: str
) -> tuple[T, int]:
    """Call `work(rows)`; each time memory runs out in it, again with half as many rows.

    Random numbers are drawn again from where the first call began: what is returned, and what is
    drawn later, are those of a call that had so few rows from the start.

    Args:
        where: what the work is, for who reads the log.

    Returns:
        What the work returned, and the rows with which it did.

    Raises:
        UserError: memory ran out with a single row, or in one of several processes: the others
            would wait for what it does again.
    """
    if size() > 1:
        with told_if_memory_ends(f"{where} in one of {size()} processes"):
            return work(rows), rows
    states = random_states(device)
    while rows > 1:
        try:
            return work(rows), rows
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Not in the handler: there the exception still holds all that the work had at hand.
        free_caches(device)
        set_random_states(states)
        log.warning("memory ran out in %s with %d rows at once: now %d", where, rows, half(rows))
        rows = half(rows)
    with told_if_memory_ends(f"{where} with a single row at once"):
        return work(1), 1


def half(rows: int) -> int:
    """Return half of the rows, rounded up: two parts are then a whole."""
    return -(-rows // 2)


def free_caches(device: torch.device) -> None:
    """Hand back what nothing refers to, and what the allocators keep for later."""
    release_freed_memory()
    if device.type in DEVICES:
        DEVICES[device.type].empty_cache()
