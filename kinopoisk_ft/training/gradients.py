"""The gradients of one optimizer step, in as many passes as memory allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kinopoisk_ft.training.batching import parts, reads_pads
from kinopoisk_ft.training.distributed import share, size, summed
from kinopoisk_ft.training.evaluate import to_device
from kinopoisk_ft.training.state import State
from kinopoisk_ft.training.strategy import reducing


def gradients(state: State, micro_batches: Sequence[dict[str, Tensor]], rows: int) -> Tensor:
    """Leave the gradients of the mean loss, `rows` rows at once; returns the loss, ().

    The mean is over all labels of the effective batch, by weight, in all processes.
    """
    state.optimizer.zero_grad(set_to_none=True)  # what an attempt left that was broken off
    count = sum(state.objective.count(batch) for batch in micro_batches)
    total = torch.zeros((), device=state.precision.device)
    shares = [share(batch) for batch in micro_batches]
    trim = not reads_pads(state.model)
    todo = [(part, counts) for mine, counts in shares for part in parts(mine, rows, trim)]
    for number, (part, counts) in enumerate(todo, start=1):
        part = to_device(part, state.precision.device)
        with reducing(state.called, number == len(todo)):
            with state.precision.autocast():
                loss = state.objective.loss_sum(state.called, part)[0] / (count or 1) * counts
            state.precision.backward(loss * size())  # gradients are averaged over the ranks
        total += loss.detach()
    return summed(total)
