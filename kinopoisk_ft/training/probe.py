"""Whether the largest micro-batch will fit into a CPU's memory, found out with a row or two.

A process that takes more than there is gets no exception: the system ends it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from kinopoisk_ft.training.allocator import release_freed_memory
from kinopoisk_ft.training.batching import Examples
from kinopoisk_ft.training.device import can_measure_growth, peak_growth
from kinopoisk_ft.training.evaluate import to_device
from kinopoisk_ft.training.limits import available_memory
from kinopoisk_ft.training.memory import half, told_if_memory_ends
from kinopoisk_ft.training.rng import random_states, set_random_states
from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)

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


def rows_that_fit(state: State, train: Examples) -> int:
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
    left = available_memory()
    with unchanged(state), told_if_memory_ends("training with a single row at once"):
        kept = _kept_for_backward(state, train)
    most = AT_ONCE * rows * kept + _trained_bytes(state.model) + _optimizer_bytes(state)
    if most < left / 2:
        log.info(
            "a step with %d rows of %d tokens at once takes less than %.0f MiB more, "
            "%.0f MiB are left: it fits", rows, longest, most / 2**20, left / 2**20,
        )  # fmt: skip
        return rows
    need = _measure(state, train)
    left = available_memory()
    fitting = rows
    while fitting > 1 and SAFETY * need.of(fitting) > left:
        fitting = half(fitting)
    log.info(
        "a step with %d rows of %d tokens at once takes %.0f MiB more, %.0f MiB are left: %s",
        rows, longest, need.of(rows) / 2**20, left / 2**20,
        "it fits" if fitting == rows else f"{fitting} at once",
    )  # fmt: skip
    if need.of(fitting) > left:
        log.warning("memory may not suffice for a single row: the system may end this process")
    return fitting


def _kept_for_backward(state: State, train: Examples) -> int:
    """Return the bytes that the graph of the longest review keeps beside the model's own."""
    own = {p.untyped_storage().data_ptr() for p in state.model.state_dict(keep_vars=True).values()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        _forward(state, state.model, train, 1)
    return sum(size for place, size in kept.items() if place not in own)


def _measure(state: State, train: Examples) -> Need:
    """Pass one row and a few through the network, as many as have room if each takes as much."""
    with unchanged(state):
        once = partial(forward_and_back, state, state.model, train)
        once(1, int(train.lengths.argmin()))  # compiles kernels, starts threads
        one = _growth(partial(once, 1))
        more = float(one)
        for few in FEW:
            if SAFETY * few * one < available_memory():
                more = max(0, _growth(partial(once, few)) - one) / (few - 1)
                break
    release_freed_memory()
    return Need(one + _optimizer_bytes(state), more)


def _growth(work: Callable[[], None]) -> int:
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
def unchanged(state: State) -> Iterator[None]:
    """Put generators and buffers back, also when a signal comes."""
    states = random_states(state.precision.device)
    buffers = {name: value.clone() for name, value in state.model.named_buffers()}
    try:
        yield
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        set_random_states(states)
        with torch.no_grad():
            for name, value in state.model.named_buffers():
                value.copy_(buffers[name])


def _optimizer_bytes(state: State) -> int:
    """Return the bytes that the first update will take for good; none after a checkpoint."""
    return 0 if state.optimizer.state else OPTIMIZER * _trained_bytes(state.model)


def _trained_bytes(model: nn.Module) -> int:
    return sum(math.prod(p.shape) * p.element_size() for p in model.parameters() if p.requires_grad)
