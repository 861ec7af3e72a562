"""Losses that leap far above what the steps before them had.

The largest of these is the measure, since a batch with one review misjudged has ten times the loss
of the others late in training, and is no spike.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence

from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)

REMEMBERED = 100  # steps whose losses say what is usual
FEWEST = 20  # steps before which nothing is
FAR = 3  # times as far above the median as the largest loss
UNDONE = 0.25  # and this part of what training has won since its first record is lost
LEAST = 0.25  # and so much of the median, where losses hardly differ


def tell_spikes(state: State, losses: Sequence[float]) -> None:
    """Count and warn of spikes among the losses of the last steps.

    Args:
        losses: of the steps up to the state's, in their order; not finite where one was skipped.
    """
    first = next((row["train_loss"] for row in state.history if "train_loss" in row), None)
    found: list[tuple[float, int, float]] = []
    for step, loss in enumerate(losses, start=state.step - len(losses) + 1):
        if not math.isfinite(loss):
            continue
        most = _most(state.recent, first)
        if loss > most:
            found.append((loss, step, most))
        # A loss that stays high is soon what is usual; one that comes down again is not.
        state.recent = [*state.recent, min(loss, most)][-REMEMBERED:]
    state.spikes += len(found)
    if found:
        loss, step, most = max(found)
        log.warning(
            "loss spike at step %d: %.4f, where the steps before allow for %.4f; spikes up to step "
            "%d: %d new, %d in all. If the scores suffer, lower trainer.lr or trainer.clip_norm, "
            "or warm up for longer",
            step, loss, most, state.step, len(found), state.spikes,
        )  # fmt: skip


def _most(recent: Sequence[float], first: float | None) -> float:
    """Return the loss above which a step is a spike."""
    if len(recent) < FEWEST:
        return math.inf
    middle = statistics.median(recent)
    won = 0.0 if first is None else first - middle
    return middle + max(FAR * (max(recent) - middle), UNDONE * won, LEAST * abs(middle))
