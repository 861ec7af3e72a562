"""What the loop is served: the micro-batches of each step, decided by its position alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from kinopoisk_ft.training.batching import Examples, epoch_rows, length_grouped
from kinopoisk_ft.training.settings import Settings
from kinopoisk_ft.training.state import State


def served(train: Examples, state: State, settings: Settings) -> Iterator[list[dict[str, Tensor]]]:
    """Yield the micro-batches of each optimizer step that is left."""
    lengths, per_epoch, first = train.lengths, settings.steps_per_epoch(len(train)), state.step
    seed, batch_size, accumulate = settings.seed, settings.batch_size, settings.accumulate
    for epoch in itertools.count(first // per_epoch):
        rows = epoch_rows(train, settings.sampling, seed, epoch)
        batches = [rows[batch] for batch in length_grouped(lengths[rows], batch_size, seed, epoch)]
        for step in range(max(first, epoch * per_epoch), (epoch + 1) * per_epoch):
            if step == state.steps:
                return
            start = (step - epoch * per_epoch) * accumulate
            yield [
                state.objective.collate(train, batch, np.random.default_rng([seed, epoch, i, 1]))
                for i, batch in enumerate(batches[start : start + accumulate], start)
            ]
