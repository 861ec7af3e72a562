"""What a run has at hand while it trains."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kinopoisk_ft.training.budget import Meter
from kinopoisk_ft.training.objective import Objective
from kinopoisk_ft.training.precision import OVERFLOW, Precision

log = logging.getLogger(__name__)


@dataclass
class State:
    """One run's objects and counts.

    Losses and verdicts on steps stay on the device until they are wanted. `steps` is the number of
    the last step, None while a budget of tokens or seconds lasts.
    """

    model: nn.Module
    objective: Objective
    precision: Precision
    optimizer: Optimizer
    schedule: LambdaLR
    meter: Meter
    steps: int | None
    micro_batch_size: int  # rows that train at once: less than asked for where memory ran out
    eval_batch_size: int
    step: int = 0
    tokens: int = 0
    losses: list[Tensor] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)  # losses told before: see `spikes`
    spikes: int = 0
    best: float | None = None
    best_step: int = 0
    since_best: int = 0
    evaluated: int = 0  # the step of the last evaluation
    skipped: int = 0
    bad_in_row: int = 0
    longest_row: int = 0  # of bad steps, since `check_finite` last asked
    verdicts: list[Tensor] = field(default_factory=list)
    # Of the best evaluation, in the order of its examples.
    best_outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    history: list[dict[str, float]] = field(default_factory=list)
    around: nn.Module | None = None  # by which training calls the model, where that is not itself

    @property
    def called(self) -> nn.Module:
        """What a training step calls; evaluation calls the model."""
        return self.model if self.around is None else self.around

    @property
    def best_score(self) -> float:
        """The best validation score; not a number where nothing was evaluated."""
        return float("nan") if self.best is None else self.best

    @property
    def length(self) -> str:
        """How long the run trains, in words: its steps, or its budget."""
        budget = self.meter.budget
        return str(self.steps) if self.steps is not None else f"{budget.amount:g} {budget.unit}"

    def settle(self) -> None:
        """Count and tell of the steps that were skipped since the last time; waits for the device.

        An overflow in fp16 tells of too large a scale, which is then halved: it is not one of a
        row, until the scale is so small that it cannot be the cause.
        """
        if not self.verdicts:
            return
        verdicts = [int(value) for value in torch.stack(self.verdicts).tolist()]
        self.verdicts.clear()
        for verdict in verdicts:
            if verdict == 0:
                self.bad_in_row = 0
            elif not (verdict == OVERFLOW and self.precision.scale_is_large()):
                self.bad_in_row += 1
            self.longest_row = max(self.longest_row, self.bad_in_row)
        skipped = sum(verdict > 0 for verdict in verdicts)
        self.skipped += skipped
        if skipped:
            log.warning(
                "up to step %d: %d skipped, since the loss or a gradient was not finite, "
                "%d in all", self.step, skipped, self.skipped,
            )  # fmt: skip
