"""Reduce the batch size to the available memory.

On a GPU, an exception shows that memory ran out. On a CPU, the system may kill the process instead,
so the memory use of training is predicted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from kinopoisk_ft.errors import UserError, first_line, is_out_of_memory
from kinopoisk_ft.training.acceleration.gradient_checkpointing import replace_recomputation
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.device import release_freed_memory, to_device
from kinopoisk_ft.training.distributed.processes import SingleRankError, world_size
from kinopoisk_ft.training.distributed.sharding import is_sharded
from kinopoisk_ft.training.rng import DEVICES, get_rng_states, set_rng_states
from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)

T = TypeVar("T")
# Ratio of the peak memory of a forward and backward pass to the bytes saved between them. It is 1.0
# to 1.6 for BERT and Mamba with 64 to 512 tokens; the rest is for evaluation and other processes.
PEAK_FACTOR = 2
# Number of moments that AdamW stores for each weight.
MOMENTS = 2
# Where the cgroup file systems are mounted, and the file that lists the cgroups of this process.
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
# For cgroups v1 and v2: the files with the limit and the usage, and the key in memory.stat of the
# pages that can be reclaimed (kernel documentation, admin-guide: cgroup-v1/memory, cgroup-v2).
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")
# If there is no limit, cgroups v1 report a number near 2**63 as the limit.
UNLIMITED = 2**60


@contextmanager
def explain_out_of_memory(where: str) -> Iterator[None]:
    """Convert an out-of-memory error in a `with` block to a UserError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # Memory may have run out in this process only.
        kind = SingleRankError if world_size() > 1 else UserError
        raise kind(
            f"memory ran out in {where}: {first_line(error)}",
            fix="lower data.max_length, use a smaller model, train fewer weights (adapter=lora, "
            "adapter=freeze), or use trainer.gradient_checkpointing=true or "
            "trainer.precision=bf16; if a GPU ran out of memory, check that no other program uses "
            "it",
        ) from error


def halve_on_out_of_memory(
    work: Callable[[int], T], rows: int, device: torch.device, where: str
) -> tuple[T, int]:
    """Call `work(rows)`, and halve `rows` each time memory runs out.

    Each attempt starts from the same random state.

    Args:
        where: name of the work for log lines and errors.

    Returns:
        The result of `work`, and the number of rows in the successful attempt.

    Raises:
        UserError: memory ran out with one row, or in one of several processes. The process cannot
            retry, because the other processes would not take part.
    """
    # One of several processes cannot retry alone.
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
        # Release memory outside the handler, where the exception no longer refers to the tensors.
        release_freed_memory()
        if device.type in DEVICES:
            # Cached blocks of other sizes could fragment the memory for the next attempt.
            DEVICES[device.type].empty_cache()
        set_rng_states(states)
        log.warning(
            "memory ran out in %s with %d rows at once; retrying with %d", where, rows, halve(rows)
        )
        rows = halve(rows)
    with explain_out_of_memory(f"{where} with a single row at once"):
        return work(1), 1


def halve(rows: int) -> int:
    """Return half the number of rows, rounded up."""
    return -(-rows // 2)


def fit_rows_to_memory(state: State, train: Examples) -> int:
    """Return a micro-batch size that fits into memory, in rows or windows.

    On a CPU, the current size is halved until a training step is predicted to fit. The prediction
    uses a forward pass of the longest review. On other devices, and if FSDP has sharded the model,
    the current size is returned.
    """
    rows, windows = state.micro_batch_size, train.most_windows
    longest = int(train.lengths.max(initial=1)) // windows
    # FSDP expects a backward pass after each forward pass, and frees the weights between layers.
    if state.precision.device.type != "cpu" or any(map(is_sharded, state.model.parameters())):
        return rows
    with preserve_state(state), explain_out_of_memory("training with a single row at once"):
        # Predicted peak of one row, in bytes, beyond the memory that is in use now.
        row = PEAK_FACTOR * _count_saved_bytes(state, train) // windows
    weights = sum(p.nbytes for p in state.model.parameters() if p.requires_grad)
    # Gradients and moments. In a resumed run, the moments are already allocated.
    fixed = weights * (1 if state.optimizer.state else 1 + MOMENTS)
    left, fitting = measure_available_memory(), rows
    # A micro-batch contains at least one review with all of its windows.
    while fitting > 1 and fixed + row * max(fitting, windows) > left:
        fitting = halve(fitting)
    log.debug(
        "a step with %d rows of %d tokens needs up to %.0f MiB more, and %.0f MiB are free: %s",
        rows, longest, (fixed + row * max(rows, windows)) / 2**20, left / 2**20,
        "it fits into memory" if fitting == rows else f"training uses {fitting} rows at once",
    )  # fmt: skip
    if fixed + row * windows > left:
        log.warning(
            "memory may not suffice even for a single row, and the system may kill this process; "
            "to avoid this, lower data.max_length, use trainer.gradient_checkpointing=true or a "
            "smaller model"
        )
    return fitting


def _count_saved_bytes(state: State, train: Examples) -> int:
    # Weights that the backward pass needs are in memory already, so they do not count.
    own = {p.untyped_storage().data_ptr() for p in state.model.state_dict(keep_vars=True).values()}
    saved: dict[int, int] = {}
    # Gradient checkpointing computes these layers again in the backward pass, one at a time.
    # The empty dict gives `max` below a value if there are no such layers.
    layers: list[dict[int, int]] = [{}]

    def run_layer(forward: Callable[..., T], *inputs: Any) -> T:
        layer: dict[int, int] = {}
        with _count_saved(layer):
            output = forward(*inputs)
        # A layer that needs no gradients saves nothing, not even its inputs.
        if layer:
            layers.append(layer)
            saved.update(_measure(x) for x in tree_leaves(inputs) if isinstance(x, Tensor))
        return output

    with replace_recomputation(state.model, run_layer), _count_saved(saved):
        run_longest(state, state.model, train, 1)
    bytes_saved, *bytes_of_layers = (
        sum(nbytes for place, nbytes in storages.items() if place not in own)
        for storages in (saved, *layers)
    )
    return bytes_saved + max(bytes_of_layers)


def _count_saved(saved: dict[int, int]) -> saved_tensors_hooks:
    # Count each storage once, because several tensors may be views of it.
    def count(tensor: Tensor) -> Tensor:
        saved.update([_measure(tensor)])
        # Returning the tensor keeps its storage alive, so no other storage gets its address.
        return tensor

    return saved_tensors_hooks(count, lambda tensor: tensor)


def _measure(tensor: Tensor) -> tuple[int, int]:
    # Return the address and the bytes of a tensor's storage.
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def run_longest(state: State, model: nn.Module, train: Examples, rows: int) -> Tensor:
    """Return the summed loss of a batch that repeats the longest review `rows` times."""
    chosen = np.full(rows, int(train.lengths.argmax()))
    batch = state.objective.collate(train, chosen, np.random.default_rng(0))
    with state.precision.autocast():
        return state.objective.loss_sum(model, to_device(batch, state.precision.device))[0]


@contextmanager
def preserve_state(state: State) -> Iterator[None]:
    """Restore random states and buffers after a `with` block, and clear the gradients."""
    states = get_rng_states(state.precision.device)
    # A forward pass in training mode may change buffers, for example the mean of batch norm.
    buffers = {name: value.clone() for name, value in state.model.named_buffers()}
    try:
        yield
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        set_rng_states(states)
        with torch.no_grad():
            for name, value in state.model.named_buffers():
                value.copy_(buffers[name])


def measure_available_memory(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return the memory that this process can still use, in bytes."""
    left = [psutil.virtual_memory().available, *_read_cgroups(cgroups, membership)]
    return max(0, min([*left, *_read_process_limit()]))


def _read_process_limit() -> Iterator[int]:
    try:
        import resource
    except ImportError:
        return
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        # RLIMIT_AS limits the address space, so compare it with the virtual size, in bytes.
        yield space - psutil.Process().memory_info().vms


def _read_cgroups(cgroups: Path, membership: Path) -> Iterator[int]:
    lines = membership.read_text().splitlines() if membership.is_file() else []
    # A line is "hierarchy:controllers:path". In cgroups v2, controllers are empty (cgroups(7)).
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if "memory" in controllers.split(","):
            root, names = cgroups / "memory", V1
        elif not controllers:
            root, names = cgroups, V2
        else:
            continue
        # In a container, this may be the path on the host, so that some folders do not exist.
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        # The limits of parent cgroups apply as well.
        for depth in range(len(parts), -1, -1):
            yield from _read_cgroup(root.joinpath(*parts[:depth]), *names)


def _read_cgroup(folder: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    try:
        most, used = ((folder / name).read_text().strip() for name in (limit, usage))
        stat = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return
    if most != "max" and int(most) < UNLIMITED:
        files = dict(line.split() for line in stat).get(reclaimable, "0")
        yield int(most) - int(used) + int(files)
