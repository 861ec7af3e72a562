"""What to do when memory runs out: the same work again, in smaller parts.

What cannot be told this way is a CPU's memory where the system ends the process without a word:
see `probe`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.device import (
    can_measure_growth,
    peak_growth,
    release_freed_memory,
    to_device,
)
from kinopoisk_ft.training.distributed.processes import SingleRankError, world_size
from kinopoisk_ft.training.rng import DEVICES, get_rng_states, set_rng_states
from kinopoisk_ft.training.state import State

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


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception tells of a lack of memory, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MESSAGES)


@contextmanager
def explain_out_of_memory(where: str) -> Iterator[None]:
    """Turn a lack of memory into a UserError that says where and what to lower.

    Of several processes it is an AloneError: one may lack what the others have.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        kind = SingleRankError if world_size() > 1 else UserError
        raise kind(
            f"memory ran out in {where}: {str(error).splitlines()[0] if str(error) else 'no more'}",
            fix="lower data.max_length, take a smaller model or one whose layers are mostly frozen "
            "(adapter=lora, adapter=freeze), or use trainer.precision=bf16; on a GPU see what else "
            "runs there",
        ) from error


def halve_on_out_of_memory(
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
    if world_size() > 1:
        with explain_out_of_memory(f"{where} in one of {world_size()} processes"):
            return work(rows), rows
    states = get_rng_states(device)
    while rows > 1:
        try:
            return work(rows), rows
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Not in the handler: there the exception still holds all that the work had at hand.
        free_caches(device)
        set_rng_states(states)
        log.warning("memory ran out in %s with %d rows at once: now %d", where, rows, halve(rows))
        rows = halve(rows)
    with explain_out_of_memory(f"{where} with a single row at once"):
        return work(1), 1


def halve(rows: int) -> int:
    """Return half of the rows, rounded up: two parts are then a whole."""
    return -(-rows // 2)


def free_caches(device: torch.device) -> None:
    """Hand back what nothing refers to, and what the allocators keep for later."""
    release_freed_memory()
    if device.type in DEVICES:
        DEVICES[device.type].empty_cache()


CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = 2**60  # version 1 writes a number near 2**63 for none


@dataclass(frozen=True)
class _Files:
    """Names in a cgroup's folder (Documentation/admin-guide, cgroup-v2 and cgroup-v1/memory)."""

    limit: str
    used: str
    reclaimable: str  # a line of memory.stat


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def measure_available_memory(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the bytes that are left by the machine, the process's cgroups and its own limit.

    Args:
        cgroups: where the cgroup file systems are mounted.
        membership: the file that names the process's cgroups, in the form of /proc/self/cgroup.
    """
    left = [psutil.virtual_memory().available, *_left_by_cgroups(cgroups, membership)]
    return max(0, min([*left, *_left_by_process()]))


def _left_by_process() -> Iterator[int]:
    """Yield the bytes of address space that the process's own limit leaves; none on Windows."""
    try:
        import resource
    except ImportError:
        return
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        yield space - psutil.Process().memory_info().vms


def _left_by_cgroups(cgroups: Path, membership: Path) -> Iterator[int]:
    """Yield what is left to each cgroup that holds the process, those above it included."""
    if not membership.is_file():
        return
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, files = cgroups / "memory", _V1
        elif not controllers:
            root, files = cgroups, _V2
        else:
            continue
        # Inside a container the path may be the host's, whose upper folders are not to be seen.
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for depth in range(len(parts), -1, -1):
            yield from _left(root.joinpath(*parts[:depth]), files)


def _left(folder: Path, files: _Files) -> Iterator[int]:
    """Yield a cgroup's limit less what it uses; pages of files give way and do not count."""
    try:
        limit, used = ((folder / name).read_text().strip() for name in (files.limit, files.used))
        stat = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return
    if limit == "max" or int(limit) >= UNLIMITED:
        return
    reclaimable = dict(line.split() for line in stat).get(files.reclaimable, "0")
    yield int(limit) - int(used) + int(reclaimable)


SAFETY = 1.2  # threads' own buffers, evaluation, and what else the machine will do
FEW = (4, 2)  # rows: the more, the less does what the system rounds up count for each
TRIES = 3
OPTIMIZER = 2  # numbers that AdamW keeps of each weight
# Of what a pass keeps for the way back, all that it takes at once: the way back's own tensors are
# smaller by far, but gradients can come to as much again.
AT_ONCE = 3


@dataclass(frozen=True)
class Need:
    """Bytes that an update takes beside what is taken already."""

    one: float  # with one row: gradients, activations, the optimizer's state
    more: float  # for each further row

    def of(self, rows: int) -> float:
        """Return the bytes for so many rows at once."""
        return self.one + self.more * (rows - 1)


def fit_rows_to_memory(state: State, train: Examples) -> int:
    """Return the micro-batch, halved until this machine has the memory for it.

    The longest review goes forward as a batch of one, and what it keeps for the way back is added
    up. Where that tells of no plenty, it is passed forward and back and its memory measured, after
    the shortest to warm up, as a batch of one, and of a few where there is room: memory is linear
    in rows. Weights, optimizer, generators and counts stay as they are. Nothing is run on other
    devices, which raise an exception, nor where the system tells no process's peak.
    """
    rows, longest = state.micro_batch_size, int(train.lengths.max(initial=1))
    if state.precision.device.type != "cpu" or not can_measure_growth():
        return rows
    left = measure_available_memory()
    with preserve_state(state), explain_out_of_memory("training with a single row at once"):
        kept = _count_saved_bytes(state, train)
    most = AT_ONCE * rows * kept + _count_trained_bytes(state.model) + _count_optimizer_bytes(state)
    if most < left / 2:
        log.info(
            "a step with %d rows of %d tokens at once takes less than %.0f MiB more, "
            "%.0f MiB are left: it fits", rows, longest, most / 2**20, left / 2**20,
        )  # fmt: skip
        return rows
    need = _measure(state, train)
    left = measure_available_memory()
    fitting = rows
    while fitting > 1 and SAFETY * need.of(fitting) > left:
        fitting = halve(fitting)
    log.info(
        "a step with %d rows of %d tokens at once takes %.0f MiB more, %.0f MiB are left: %s",
        rows, longest, need.of(rows) / 2**20, left / 2**20,
        "it fits" if fitting == rows else f"{fitting} at once",
    )  # fmt: skip
    if need.of(fitting) > left:
        log.warning("memory may not suffice for a single row: the system may end this process")
    return fitting


def _count_saved_bytes(state: State, train: Examples) -> int:
    """Return the bytes that the graph of the longest review keeps beside the model's own."""
    own = {p.untyped_storage().data_ptr() for p in state.model.state_dict(keep_vars=True).values()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        _forward(state, state.model, train, 1)
    return sum(nbytes for place, nbytes in kept.items() if place not in own)


def _measure(state: State, train: Examples) -> Need:
    """Pass one row and a few through the network, as many as have room if each takes as much."""
    with preserve_state(state):
        once = partial(forward_and_back, state, state.model, train)
        once(1, int(train.lengths.argmin()))  # compiles kernels, starts threads
        one = _measure_growth(partial(once, 1))
        more = float(one)
        for few in FEW:
            if SAFETY * few * one < measure_available_memory():
                more = max(0, _measure_growth(partial(once, few)) - one) / (few - 1)
                break
    release_freed_memory()
    return Need(one + _count_optimizer_bytes(state), more)


def _measure_growth(work: Callable[[], None]) -> int:
    """Return the least growth of some: what the system rounds up differs, and counts as rows do."""
    return min(peak_growth(work) for _ in range(TRIES))


def forward_and_back(
    state: State, model: nn.Module, train: Examples, rows: int, review: int | None = None
) -> None:
    """Run a review (None: the longest), `rows` times at once, and back; leaves no gradients."""
    state.precision.backward(_forward(state, model, train, rows, review))
    state.optimizer.zero_grad(set_to_none=True)


def _forward(
    state: State, model: nn.Module, train: Examples, rows: int, review: int | None = None
) -> Tensor:
    chosen = int(train.lengths.argmax()) if review is None else review
    batch = state.objective.collate(train, np.full(rows, chosen), np.random.default_rng(0))
    with state.precision.autocast():
        return state.objective.loss_sum(model, to_device(batch, state.precision.device))[0]


@contextmanager
def preserve_state(state: State) -> Iterator[None]:
    """Put generators and buffers back, also when a signal comes."""
    states = get_rng_states(state.precision.device)
    buffers = {name: value.clone() for name, value in state.model.named_buffers()}
    try:
        yield
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        set_rng_states(states)
        with torch.no_grad():
            for name, value in state.model.named_buffers():
                value.copy_(buffers[name])


def _count_optimizer_bytes(state: State) -> int:
    """Return the bytes that the first update will take for good; none after a checkpoint."""
    return 0 if state.optimizer.state else OPTIMIZER * _count_trained_bytes(state.model)


def _count_trained_bytes(model: nn.Module) -> int:
    return sum(math.prod(p.shape) * p.element_size() for p in model.parameters() if p.requires_grad)
