"""The loop: the same for BERT, Mamba and language-model pretraining."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kinopoisk_ft.training.allocator import keep_freed_memory
from kinopoisk_ft.training.batching import Examples, epoch_rows, length_grouped
from kinopoisk_ft.training.budget import Meter
from kinopoisk_ft.training.checkpoint import BestWeights
from kinopoisk_ft.training.clock import Clock
from kinopoisk_ft.training.device import choose_device
from kinopoisk_ft.training.dropout import training_dropout
from kinopoisk_ft.training.evaluate import Evaluation, evaluate, to_device
from kinopoisk_ft.training.metrics import LOWER_IS_BETTER
from kinopoisk_ft.training.objective import Objective
from kinopoisk_ft.training.optim import param_groups, warm_schedule
from kinopoisk_ft.training.precision import Precision, wait
from kinopoisk_ft.training.prefetch import prefetched
from kinopoisk_ft.training.progress import Progress
from kinopoisk_ft.training.settings import Settings
from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)

Audit = Callable[[nn.Module], None]


class Recorder(Protocol):
    """Where metrics go."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record values at an optimizer step."""
        ...


class Trainer(Settings):
    """The loop over its settings: `fit` says what a run is, `_step` what an update is."""

    def open(self) -> tuple[Precision, Clock]:
        """Choose device and precision, log both, and seed; done before a model is built."""
        device = choose_device(self.device)
        precision = Precision(self.precision, device)
        log.info("device %s, precision %s (%s)", device, precision.kind, precision.reason)
        if self.keep_memory and keep_freed_memory():
            log.info("freed memory stays in the process")
        torch.manual_seed(self.seed)
        return precision, Clock(lambda: wait(device))

    def fit(
        self,
        model: nn.Module,
        objective: Objective,
        train: Examples,
        val: Examples,
        *,
        fresh: Iterable[str],
        audit: Audit,
        precision: Precision,
        clock: Clock,
        recorder: Recorder,
        folder: Path,
    ) -> State:
        """Train, evaluate when due, keep the best weights and leave them in the model.

        Args:
            fresh: names of parameters that start from random values.
            audit: called with the model after the first backward pass; raises to stop the run.
            folder: where the best weights are kept.
        """
        state = self._setup(model, objective, precision, fresh, len(train), clock)
        best = BestWeights(folder)
        in_place = training_dropout(model, precision.device, self.attention_dropout)
        steps = prefetched(self._steps(train, state))
        with in_place, clock.section("train"), Progress(state.steps) as progress, steps as batches:
            for micro_batches in batches:
                self._step(state, micro_batches, audit)
                if state.step % self.log_every == 0 or state.step == state.steps:
                    self._log(state, recorder, progress)
                if self._evaluation_due(state, len(train)):
                    with clock.section("val"):
                        scores = evaluate(
                            model, val, objective, precision, self.eval_batch_size
                        ).scores
                    with clock.section("checkpoint"):
                        self._judge(state, scores, best, recorder, progress)
                    model.train()
                if self.patience is not None and state.since_best >= self.patience:
                    log.info("stopped early: %d evaluations without a better one", state.since_best)
                    break
                if state.step == state.steps:
                    break
        if state.best_step != state.step:
            best.restore(model)
        log.info("best val %s %.4f at step %d", self.best_metric, state.best, state.best_step)
        return state

    def test(
        self, model: nn.Module, objective: Objective, examples: Examples, precision: Precision
    ) -> Evaluation:
        """Evaluate with the weights that `fit` left."""
        return evaluate(model, examples, objective, precision, self.eval_batch_size)

    def _setup(
        self,
        model: nn.Module,
        objective: Objective,
        precision: Precision,
        fresh: Iterable[str],
        reviews: int,
        clock: Clock,
    ) -> State:
        model.to(precision.device).train()
        steps = self.length.steps(self.steps_per_epoch(reviews))
        meter = Meter(self.length, clock, steps)
        share = math.ceil(self.warmup_share * meter.total)
        warmup = share if self.warmup_steps is None else self.warmup_steps
        groups = param_groups(
            model, fresh, lr=self.lr, head_lr=self.head_lr, weight_decay=self.weight_decay
        )
        optimizer = self.optimizer(groups, lr=self.lr)
        schedule = warm_schedule(optimizer, self.schedule, warmup, meter.total, meter.place)
        if steps is None:
            log.info("trains for %s, %.0f%% of it warm-up", self.budget, 100 * self.warmup_share)
        else:
            log.info("%d optimizer steps, %d of them warm-up", steps, warmup)
        return State(model, objective, precision, optimizer, schedule, meter, steps)

    def steps_per_epoch(self, reviews: int) -> int:
        """Return the optimizer steps of one pass over the reviews."""
        return math.ceil(math.ceil(reviews / self.batch_size) / self.accumulate)

    def _steps(self, train: Examples, state: State) -> Iterator[list[dict[str, Tensor]]]:
        """Yield the micro-batches of each optimizer step."""
        lengths, made = train.lengths, 0
        for epoch in itertools.count():
            rows = epoch_rows(train, self.sampling, self.seed, epoch)
            grouped = length_grouped(lengths[rows], self.batch_size, self.seed, epoch)
            batches = [rows[batch] for batch in grouped]
            rng = np.random.default_rng([self.seed, epoch, 1])
            for start in range(0, len(batches), self.accumulate):
                if made == state.steps:
                    return
                made += 1
                group = batches[start : start + self.accumulate]
                yield [state.objective.collate(train, rows, rng) for rows in group]

    def _step(self, state: State, micro_batches: list[dict[str, Tensor]], audit: Audit) -> None:
        """One update: the loss is the mean over all labels of the effective batch, by weight."""
        count = sum(state.objective.count(batch) for batch in micro_batches)
        total = torch.zeros((), device=state.precision.device)
        for batch in micro_batches:
            state.tokens += int(batch["attention_mask"].sum())
            batch = to_device(batch, state.precision.device)
            with state.precision.autocast():
                loss = state.objective.loss_sum(state.model, batch)[0] / (count or 1)
            state.precision.backward(loss)
            total += loss.detach()
        state.precision.unscale(state.optimizer)
        if state.step == 0:
            audit(state.model)
        state.precision.step(state.optimizer, state.model.parameters(), self.clip_norm)
        state.step += 1
        if state.meter.read(state.step, state.tokens):
            state.steps = state.step
        state.schedule.step()
        state.losses.append(total)

    def _log(self, state: State, recorder: Recorder, progress: Progress) -> None:
        """The only place in training where a number comes from the device."""
        loss = float(torch.stack(state.losses).mean())
        state.losses.clear()
        recorder.metrics(
            {"train_loss": loss, "lr": float(state.schedule.get_last_lr()[0])}, state.step
        )
        state.history.append({"step": state.step, "train_loss": loss})
        progress.to(state.step, loss=f"{loss:.4f}")

    def _evaluation_due(self, state: State, reviews: int) -> bool:
        every = self.steps_per_epoch(reviews) if self.eval_every == "epoch" else self.eval_every
        return state.step % every == 0 or state.step == state.steps

    def _judge(
        self,
        state: State,
        scores: dict[str, float],
        best: BestWeights,
        recorder: Recorder,
        progress: Progress,
    ) -> None:
        """Record an evaluation; keep the weights if it is the best so far."""
        named = {f"val_{key}": value for key, value in scores.items()}
        recorder.metrics(named, state.step)
        state.history.append({"step": state.step, **named})
        value = scores[self.best_metric]
        sign = -1.0 if self.best_metric in LOWER_IS_BETTER else 1.0
        state.since_best += 1
        if state.best is None or math.isnan(state.best) or sign * value > sign * state.best:
            state.best, state.best_step, state.since_best = value, state.step, 0
            best.save(state.model)
        text = ", ".join(f"{key} {v:.4f}" for key, v in named.items())
        log.info("step %d of %s: %s", state.step, state.steps or self.budget, text)
        progress.to(state.step, **{f"val_{self.best_metric}": f"{value:.4f}"})
