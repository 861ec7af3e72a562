"""Define the state of a training run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from kinopoisk_ft.training.budget import Meter
from kinopoisk_ft.training.checkpoint.best import copy_tensors, trained_tensors
from kinopoisk_ft.training.device import peak_memory_mb
from kinopoisk_ft.training.distributed.sharding import shard_like
from kinopoisk_ft.training.objective import Objective
from kinopoisk_ft.training.precision import OVERFLOW, Precision
from kinopoisk_ft.training.rng import get_rng_states, set_rng_states

log = logging.getLogger(__name__)

# Attributes of State that are numbers and lists, which a checkpoint stores unchanged.
COUNTS = (
    "step", "tokens", "best", "best_step", "since_best", "evaluated", "skipped", "bad_in_row",
    "longest_row", "spikes", "history", "micro_batch_size", "eval_batch_size",
)  # fmt: skip
# Keys of LambdaLR.state_dict() in all versions of PyTorch; the config defines its `lr_lambdas`.
SCHEDULE = ("base_lrs", "last_epoch", "_step_count", "_last_lr")


@dataclass
class State:
    """Everything that changes during training.

    Args:
        wrapped_model: the module that training steps call. It is `model`, or a DDP or torch.compile
            wrapper of `model`.
        steps: number of optimizer steps in the whole run. None until the end of training if the
            budget is in tokens or seconds.
        micro_batch_size: rows (or windows) in a forward pass of training; it is halved when memory
            runs out.
    """

    model: nn.Module
    wrapped_model: nn.Module
    objective: Objective
    precision: Precision
    optimizer: Optimizer
    schedule: LambdaLR
    meter: Meter
    steps: int | None
    micro_batch_size: int
    eval_batch_size: int
    # Length of the warm-up, in steps of the learning-rate schedule.
    warmup: int = 0
    step: int = 0
    tokens: int = 0
    # Losses and the status of steps stay on the device until they are logged or checked, because
    # reading them at every step would make the CPU wait for the device.
    losses: list[Tensor] = field(default_factory=list)
    step_status: list[Tensor] = field(default_factory=list)
    spikes: int = 0
    best: float | None = None
    best_step: int = 0
    since_best: int = 0
    # The step of the last evaluation.
    evaluated: int = 0
    skipped: int = 0
    bad_in_row: int = 0
    # The highest value of `bad_in_row` since the last call of `Monitor.check_finite`.
    longest_row: int = 0
    # Outputs of the best evaluation, in the order of its examples.
    best_outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    history: list[dict[str, float]] = field(default_factory=list)
    # Peak memory in MiB of the processes from which this run has resumed.
    earlier_peak_mb: float = 0.0

    @property
    def best_score(self) -> float:
        """Return the best validation score; NaN before the first evaluation."""
        return float("nan") if self.best is None else self.best

    @property
    def length(self) -> str:
        """Text for log lines: the planned number of steps or, if it is unknown, the budget."""
        unit, amount = self.meter.budget.unit, self.meter.budget.amount
        return f"a budget of {amount:g} {unit}" if self.steps is None else str(self.steps)

    def measure_peak_memory(self) -> float:
        """Return the peak memory of the run in MiB, including earlier processes; NaN if unknown."""
        # Unlike `max`, this is NaN if one of the values is NaN.
        return float(np.maximum(self.earlier_peak_mb, peak_memory_mb(self.precision.device)))

    def sync_skipped_steps(self) -> None:
        """Count the steps skipped since the last call, and log a warning if there are any.

        This method waits for the device. A step that was skipped in fp16 does not count towards
        `max_bad_steps` if a large loss scale may be the cause.
        """
        if not self.step_status:
            return
        statuses = [int(value) for value in torch.stack(self.step_status).tolist()]
        self.step_status.clear()
        for status in statuses:
            if status == 0:
                self.bad_in_row = 0
            elif not (status == OVERFLOW and self.precision.scale_is_large()):
                self.bad_in_row += 1
            self.longest_row = max(self.longest_row, self.bad_in_row)
        skipped = sum(status > 0 for status in statuses)
        self.skipped += skipped
        if skipped:
            log.warning(
                "%d steps up to step %d were skipped, because the loss or a gradient was not "
                "finite; total so far: %d", skipped, self.step, self.skipped,
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return all values that training needs to resume exactly after the last step.

        Tensors are not copied. They are sharded if the model is sharded.
        """
        # The counters below must include the steps whose status is still on the device.
        self.sync_skipped_steps()
        schedule = self.schedule.state_dict()
        return {
            **{key: getattr(self, key) for key in COUNTS},
            "weights": trained_tensors(self.model),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {key: schedule[key] for key in SCHEDULE},
            "scaler": self.precision.state_dict(),
            "rng": get_rng_states(self.precision.device),
            # Losses since the last logged mean.
            "losses": torch.stack(self.losses) if self.losses else torch.empty(0),
            "best_outputs": self.best_outputs,
            "peak_memory_mb": self.measure_peak_memory(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned.

        The tensors must not be sharded. They can be on any device.

        Raises:
            ValueError: the optimizer state does not fit the trained weights.
        """
        copy_tensors(state["weights"].items(), self.model)
        self._load_optimizer(state["optimizer"])
        # LambdaLR requires the key `lr_lambdas`, which only its current state has.
        self.schedule.load_state_dict({**self.schedule.state_dict(), **state["schedule"]})
        self.precision.load_state_dict(state["scaler"])
        # This is the state of rank 0. The other ranks are seeded at each step, by `seed_rank`.
        set_rng_states(state["rng"])
        for key in COUNTS:
            setattr(self, key, state[key])
        self.losses = list(state["losses"].to(self.precision.device))
        self.best_outputs = state["best_outputs"]
        self.earlier_peak_mb = state["peak_memory_mb"]
        # The used share of the budget is not stored. It follows from the tokens or the clock.
        if self.meter.update(self.step, self.tokens):
            self.steps = self.step

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        # PyTorch numbers the parameters in the order of the groups.
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments: dict[int, dict[str, Any]] = {}
        for index, values in state["state"].items():
            # The indices are strings, because they were keys in a JSON file.
            like = weights[int(index)]
            for key, value in values.items():
                if isinstance(value, Tensor) and not self._fits(value, like):
                    size, full = tuple(value.shape), tuple(like.shape)
                    raise ValueError(
                        f"optimizer: {index}/{key} has shape {size}, but its weight has {full}"
                    )
            moments[int(index)] = {
                key: shard_like(value, like) if isinstance(value, Tensor) else value
                for key, value in values.items()
            }
        self.optimizer.load_state_dict({**state, "state": moments})

    def _fits(self, value: Tensor, weight: Tensor) -> bool:
        # The state of PyTorch's optimizers is a scalar, or has the shape of the weight, where
        # dimensions may be reduced to 1. Other optimizers may have any state.
        sizes = zip(value.shape, weight.shape, strict=False)
        return not type(self.optimizer).__module__.startswith("torch.optim.") or (
            value.dim() in (0, weight.dim()) and all(size in (1, full) for size, full in sizes)
        )
