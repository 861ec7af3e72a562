"""The settings of training, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.statistics.metrics import BestMetric
from kinopoisk_ft.training.acceleration.compile import Compile
from kinopoisk_ft.training.budget import Budget
from kinopoisk_ft.training.distributed.strategy import Strategy
from kinopoisk_ft.training.losses import cross_entropy
from kinopoisk_ft.training.precision import Kind


@dataclass(kw_only=True)
class Settings:
    """Hold the settings of conf/trainer; raises UserError for values out of range."""

    optimizer: Callable[..., Any]
    schedule: Callable[..., Any]
    loss: Callable[..., Any] = cross_entropy
    seed: int
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Kind
    strategy: Strategy
    epochs: int
    max_steps: int | None
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
    eval_every: Literal["epoch"] | int
    patience: int | None
    best_metric: BestMetric
    log_every: int
    checkpoint_every: int | None
    max_bad_steps: int
    keep_memory: bool
    attention_dropout: Literal["keep", "off"]
    compile: Compile
    prefix_cache: Literal["off", "fp32", "fp16"]
    class_weights: Literal["none", "balanced"]
    sampling: Literal["shuffled", "balanced"]

    def __post_init__(self) -> None:
        counts = (
            "epochs",
            "max_steps",
            "batch_size",
            "accumulate",
            "micro_batch_size",
            "eval_batch_size",
            "eval_every",
        )
        for key in (*counts, "patience", "log_every", "max_bad_steps"):
            value = getattr(self, key)
            if isinstance(value, int) and value < 1:
                raise UserError(f"trainer.{key}={value}: it must be 1 or more")
        for key in ("lr", "head_lr", "weight_decay", "clip_norm", "warmup_share", "warmup_steps",
                    "checkpoint_every"):  # fmt: skip
            value = getattr(self, key) or 0
            if not 0 <= value < math.inf:
                raise UserError(f"trainer.{key}={value}: it must be a number that is not negative")
        if self.warmup_share > 1:
            raise UserError(
                f"trainer.warmup_share={self.warmup_share}: it is a share of all steps, at most 1",
                fix="give a number of steps as trainer.warmup_steps",
            )
        if self.rows_at_once > self.batch_size:
            raise UserError(
                f"trainer.micro_batch_size={self.micro_batch_size}: a batch has only "
                f"trainer.batch_size={self.batch_size} rows",
                fix="leave it null, or give fewer rows than a batch has",
            )
        self._check_budget()
        self._check_loss()

    def steps_per_epoch(self, reviews: int) -> int:
        """Return the optimizer steps of one pass over the reviews."""
        return math.ceil(math.ceil(reviews / self.batch_size) / self.accumulate)

    @property
    def rows_at_once(self) -> int:
        """Rows of a batch that train at once, before memory runs out."""
        return self.micro_batch_size or self.batch_size

    @property
    def length(self) -> Budget:
        """How long a run trains: the budget, else the epochs, cut short at max_steps."""
        if self.budget is not None:
            return Budget.parse(self.budget)
        return Budget("epochs", self.epochs, self.max_steps)

    def _check_budget(self) -> None:
        """Refuse a second limit beside the budget, and warm-up in steps that nobody counts."""
        measured = self.length.steps(1) is None
        if self.budget is not None and self.max_steps is not None:
            raise UserError(
                f"trainer.budget={self.budget} and trainer.max_steps={self.max_steps}: two limits",
                fix="give one; as a budget the second is "
                f"trainer.max_steps=null trainer.budget=steps:{self.max_steps}",
            )
        if measured and self.warmup_steps is not None:
            raise UserError(
                f"trainer.warmup_steps={self.warmup_steps}: with trainer.budget={self.budget} "
                "the number of steps is not known beforehand",
                fix="give a share of it: trainer.warmup_steps=null trainer.warmup_share=0.1",
            )

    def _check_loss(self) -> None:
        """Call the loss once, so that options out of range are refused before any work."""
        try:
            total, count = self.loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), None)
            float(total), float(count)
        except Exception as error:
            raise UserError(
                f"this loss cannot be used: {error}",
                where="trainer.loss",
                fix="see the files in conf/trainer/loss; a loss maps logits, labels and class "
                "weights to its sum and count",
            ) from error

    def refuse_balance(self, why: str) -> None:
        """Raise UserError for options that balance classes, where nothing would heed them."""
        if self.class_weights != "none" or self.sampling != "shuffled":
            raise UserError(
                f"trainer.class_weights and trainer.sampling have no effect here: {why}",
                fix="leave out trainer.class_weights=balanced and trainer.sampling=balanced",
            )
