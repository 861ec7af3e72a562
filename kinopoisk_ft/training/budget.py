"""Limit training to a number of epochs, optimizer steps, tokens or seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.clock import Clock
from kinopoisk_ft.training.distributed.processes import broadcast

Unit = Literal["epochs", "steps", "tokens", "seconds"]
EXAMPLES = "epochs:3, steps:500, tokens:2000000 or seconds:600"
# Schedules count in integers. With tokens or seconds, a schedule step is a millionth of the budget.
RESOLUTION = 1_000_000


@dataclass(frozen=True)
class Budget:
    """A limit on training: a number of epochs, optimizer steps, tokens or seconds.

    Tokens do not include padding. Seconds do not include evaluations, checkpoints, compilation or
    the fit of the output layer (trainer.head_first).

    Args:
        max_steps, min_steps: maximum and minimum number of optimizer steps, only for a budget of
            epochs. To reach `min_steps`, training continues after the last epoch.
    """

    unit: Unit
    amount: float
    max_steps: int | None = None
    min_steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Parse a budget such as "steps:500"; raise UserError if the text is not valid."""
        name, _, number = text.partition(":")
        unit = next((unit for unit in get_args(Unit) if unit == name), None)
        try:
            amount = float(number) if unit == "seconds" else int(number)
        except ValueError:
            amount = 0
        # The condition also refuses NaN, for which every comparison is false.
        if unit is None or not (0 < amount < math.inf):
            raise UserError(
                f"trainer.budget={text!r} is not a valid budget",
                fix=f"use a unit and a number above zero, for example {EXAMPLES}",
            )
        return cls(unit, amount)

    def count_steps(self, per_epoch: int) -> int | None:
        """Return the budget in optimizer steps; None for a budget of tokens or seconds.

        Args:
            per_epoch: number of optimizer steps in an epoch.
        """
        if self.unit == "epochs":
            steps = max(int(self.amount) * per_epoch, self.min_steps or 0)
            return min(steps, self.max_steps or steps)
        return int(self.amount) if self.unit == "steps" else None


@dataclass
class Meter:
    """The progress of a run towards the end of its budget.

    With a budget of tokens or seconds, the number of steps is not known in advance, so the
    learning-rate schedule depends on the used fraction of the budget.
    """

    budget: Budget
    clock: Clock
    steps: int | None
    # The used fraction of a budget of tokens or seconds, 0 to 1.
    share: float = 0.0

    @property
    def total(self) -> int:
        """The length of the learning-rate schedule.

        For a budget of tokens or seconds, the unit is a millionth of the budget. Otherwise, the
        unit is an optimizer step.
        """
        return RESOLUTION if self.steps is None else self.steps

    def schedule_step(self, step: int) -> int:
        """Convert an optimizer step to a position in the learning-rate schedule, 0 to `total`."""
        return int(self.share * RESOLUTION) if self.steps is None else step

    def update(self, step: int, tokens: int) -> bool:
        """Update the progress, and return whether the budget is used up.

        Args:
            step, tokens: numbers of optimizer steps and of training tokens since the start.
        """
        if self.steps is not None:
            return step >= self.steps
        # Ranks measure different seconds, but have to stop at the same step.
        used = (
            tokens if self.budget.unit == "tokens" else broadcast(self.clock.get_seconds("train"))
        )
        # The last step may exceed the budget.
        self.share = min(1.0, used / self.budget.amount)
        return self.share >= 1.0
