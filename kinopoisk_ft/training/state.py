"""What a run has at hand while it trains."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kinopoisk_ft.training.budget import Meter
from kinopoisk_ft.training.objective import Objective
from kinopoisk_ft.training.precision import Precision


@dataclass
class State:
    """One run's objects and counts; losses stay on the device until they are logged.

    `steps` is the number of the last step, None while a budget of tokens or seconds lasts.
    """

    model: nn.Module
    objective: Objective
    precision: Precision
    optimizer: Optimizer
    schedule: LambdaLR
    meter: Meter
    steps: int | None
    step: int = 0
    tokens: int = 0
    losses: list[Tensor] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    since_best: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def best_score(self) -> float:
        """The best validation score; not a number where nothing was evaluated."""
        return float("nan") if self.best is None else self.best
