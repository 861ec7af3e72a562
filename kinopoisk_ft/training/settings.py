"""Define and validate the trainer's settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kinopoisk_ft.errors import UserError, check_positive
from kinopoisk_ft.statistics.metrics import BestMetric
from kinopoisk_ft.training.acceleration.compile import Compile
from kinopoisk_ft.training.budget import Budget
from kinopoisk_ft.training.distributed.processes import TIMEOUT
from kinopoisk_ft.training.distributed.strategy import Strategy
from kinopoisk_ft.training.losses import cross_entropy
from kinopoisk_ft.training.precision import Kind


@dataclass(kw_only=True)
class Settings:
    """The validated settings in conf/trainer."""

    optimizer: Callable[..., Any]
    schedule: Callable[..., Any]
    loss: Callable[..., Any] = cross_entropy
    seed: int
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Kind
    strategy: Strategy
    process_timeout: int = TIMEOUT
    epochs: int
    max_steps: int | None
    min_steps: int | None = None
    budget: str | None
    batch_size: int
    accumulate: int
    micro_batch_size: int | None
    eval_batch_size: int
    lr: float
    head_lr: float | None
    weight_decay: float
    clip_norm: float | None
    warmup_steps: int | None
    warmup_share: float
    layer_decay: float | None = None
    head_first: bool = False
    eval_every: Literal["epoch"] | int
    patience: int | None
    best_metric: BestMetric
    log_every: int
    checkpoint_every: int | None
    max_bad_steps: int
    keep_memory: bool
    gradient_checkpointing: bool = False
    attention_dropout: Literal["keep", "off"]
    compile: Compile
    prefix_cache: Literal["off", "fp32", "fp16"]
    class_weights: Literal["none", "balanced"]
    sampling: Literal["shuffled", "balanced"]

    def __post_init__(self) -> None:
        for key in ("epochs", "max_steps", "min_steps", "batch_size", "accumulate",
                    "micro_batch_size", "eval_batch_size", "eval_every", "patience", "log_every",
                    "max_bad_steps", "process_timeout"):  # fmt: skip
            value = getattr(self, key)
            check_positive(None if value == "epoch" else value, f"trainer.{key}")
        for key in ("lr", "head_lr", "weight_decay", "clip_norm", "warmup_share", "warmup_steps",
                    "checkpoint_every"):  # fmt: skip
            value = getattr(self, key) or 0
            # The condition also refuses NaN, for which every comparison is false.
            if not 0 <= value < math.inf:
                raise UserError(
                    f"trainer.{key}={value} is not valid; use a finite number, 0 or more"
                )
        if self.warmup_share > 1:
            raise UserError(
                f"trainer.warmup_share={self.warmup_share} is above 1, but it is a fraction of all "
                "optimizer steps",
                fix="use a number from 0 to 1, or set a number of steps with trainer.warmup_steps",
            )
        # In `transformers`, max_grad_norm=0 turns clipping off.
        if self.clip_norm == 0:
            raise UserError(
                "trainer.clip_norm=0 would scale every gradient down to zero, so nothing would be "
                "learned",
                fix="use trainer.clip_norm=null for no clipping, or a number above 0",
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(
                f"trainer.layer_decay={self.layer_decay} is not valid; use a number above 0 and up "
                "to 1"
            )
        if self.initial_micro_batch_size > self.batch_size:
            raise UserError(
                f"trainer.micro_batch_size={self.micro_batch_size} is larger than "
                f"trainer.batch_size={self.batch_size}",
                fix=f"use trainer.micro_batch_size=null or at most {self.batch_size}",
            )
        if self.class_weights == self.sampling == "balanced":
            raise UserError(
                "trainer.class_weights=balanced and trainer.sampling=balanced together would give "
                "rare classes too much weight, because each of them alone balances the classes",
                fix="set only one of them",
            )
        self._check_budget()
        self._check_loss()

    def steps_per_epoch(self, reviews: int) -> int:
        """Return the number of optimizer steps in an epoch of `reviews` reviews."""
        # The last batch of an epoch and the last step may contain fewer reviews.
        return math.ceil(math.ceil(reviews / self.batch_size) / self.accumulate)

    @property
    def initial_micro_batch_size(self) -> int:
        """Return the micro-batch size at the start of training."""
        return self.micro_batch_size or self.batch_size

    def keeps_memory(self, device: torch.device) -> bool:
        """Return whether memory that is freed on the CPU should stay in the process."""
        # Fragments of this memory would take most of what gradient checkpointing saves on a CPU.
        return self.keep_memory and not (self.gradient_checkpointing and device.type == "cpu")

    @property
    def training_budget(self) -> Budget:
        """The budget from `budget` if it is set, otherwise from `epochs` and the step limits."""
        if self.budget is not None:
            return Budget.parse(self.budget)
        return Budget("epochs", self.epochs, self.max_steps, self.min_steps)

    def count_warmup(self, total: int) -> int:
        """Return the length of the warm-up, in the unit of `total` (see `Meter.total`)."""
        if self.warmup_steps is None:
            return math.ceil(self.warmup_share * total)
        return self.warmup_steps

    def _check_budget(self) -> None:
        # Whether the number of steps is known does not depend on the length of an epoch.
        has_unknown_steps = self.training_budget.count_steps(1) is None
        if self.budget is not None and self.max_steps is not None:
            raise UserError(
                f"trainer.budget={self.budget} and trainer.max_steps={self.max_steps} cannot be "
                "set together, because both limit the training",
                fix="set only one of them; to limit the steps, use "
                f"trainer.max_steps=null trainer.budget=steps:{self.max_steps}",
            )
        if self.min_steps is not None and (
            self.budget is not None or self.min_steps > (self.max_steps or self.min_steps)
        ):
            other = "budget" if self.budget is not None else "max_steps"
            raise UserError(
                f"trainer.min_steps={self.min_steps} contradicts trainer.{other}="
                f"{getattr(self, other)}",
                fix=f"set trainer.min_steps=null or trainer.{other}=null",
            )
        if has_unknown_steps and self.warmup_steps is not None:
            raise UserError(
                f"trainer.warmup_steps={self.warmup_steps} cannot be used with "
                f"trainer.budget={self.budget}, because the number of steps is not known",
                fix="set a fraction instead: trainer.warmup_steps=null trainer.warmup_share=0.1",
            )

    def _check_loss(self) -> None:
        try:
            # Call the function once, to reject invalid options before the run starts.
            total, count = self.loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), None)
            float(total), float(count)
        except Exception as error:
            raise UserError(
                f"the loss function failed when it was called with example inputs: {error}",
                where="trainer.loss",
                fix="see the options in conf/trainer/loss; a loss function receives logits, labels "
                "and class weights, and returns the sum of the losses and the number to "
                "divide it by",
            ) from error

    def reject_class_balancing(self, why: str) -> None:
        """Raise UserError if class weights or balanced sampling are set."""
        if self.class_weights != "none" or self.sampling != "shuffled":
            raise UserError(
                f"trainer.class_weights and trainer.sampling have no effect, because {why}",
                fix="remove trainer.class_weights=balanced and trainer.sampling=balanced",
            )
