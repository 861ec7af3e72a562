"""How long a run trains, in one unit for all approaches: epochs, steps, tokens or seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.clock import Clock
from kinopoisk_ft.training.distributed.processes import broadcast

Unit = Literal["epochs", "steps", "tokens", "seconds"]
FORMS = "epochs:3, steps:500, tokens:2000000 or seconds:600"
PARTS = 1_000_000  # schedules count whole steps: a share of a budget is told to them in millionths


@dataclass(frozen=True)
class Budget:
    """An amount of training; real tokens of the batches, seconds of the clock's section `train`."""

    unit: Unit
    amount: float
    most_steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `unit:amount`; raises UserError, with the valid forms, for anything else."""
        name, _, number = text.partition(":")
        unit = next((unit for unit in get_args(Unit) if unit == name), None)
        try:
            amount = float(number) if unit == "seconds" else int(number)
        except ValueError:
            amount = 0
        if unit is None or not (0 < amount < math.inf):
            raise UserError(
                f"trainer.budget={text!r} is no budget",
                fix=f"give a unit and a number above zero: {FORMS}",
            )
        return cls(unit, amount)

    def steps(self, per_epoch: int) -> int | None:
        """Return the optimizer steps, None where only the training itself tells."""
        if self.unit == "epochs":
            steps = int(self.amount) * per_epoch
            return min(steps, self.most_steps or steps)
        return int(self.amount) if self.unit == "steps" else None


@dataclass
class Meter:
    """How far a run is: in steps where their number is known, else by what it has used.

    A schedule is asked for place `place(step)` of `total`, so that with tokens or seconds the
    learning rate follows the share of the budget that is used up.
    """

    budget: Budget
    clock: Clock
    steps: int | None
    share: float = 0.0  # of tokens or seconds, 0 to 1

    @property
    def total(self) -> int:
        """The place at which a schedule ends."""
        return PARTS if self.steps is None else self.steps

    def place(self, step: int) -> int:
        """Return where the schedule is at an optimizer step."""
        return int(self.share * PARTS) if self.steps is None else step

    def read(self, step: int, tokens: int) -> bool:
        """Note what is used after `step` steps and `tokens` tokens; returns whether that is all."""
        if self.steps is not None:
            return step >= self.steps
        used = tokens if self.budget.unit == "tokens" else broadcast(self.clock.spent("train"))
        self.share = min(1.0, used / self.budget.amount)
        return self.share >= 1.0
