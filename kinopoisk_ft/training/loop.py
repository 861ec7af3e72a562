"""The loop: the same for BERT, Mamba and language-model pretraining."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kinopoisk_ft.training.acceleration.compile import compile_model, warm_up_compile
from kinopoisk_ft.training.batching import (
    Examples,
    group_by_length,
    prefetch,
    reads_pads,
    select_epoch_rows,
    split_batch,
)
from kinopoisk_ft.training.budget import Meter
from kinopoisk_ft.training.checkpoint.best import BestWeights
from kinopoisk_ft.training.checkpoint.manager import CheckpointManager, read_precision
from kinopoisk_ft.training.clock import Clock
from kinopoisk_ft.training.device import choose_device, keep_freed_memory, to_device
from kinopoisk_ft.training.distributed.processes import (
    all_reduce_max,
    all_reduce_sum,
    broadcast_from_main,
    seed_rank,
    shard_batch,
    world_size,
)
from kinopoisk_ft.training.distributed.strategy import check_strategy, sync_gradients, wrap_model
from kinopoisk_ft.training.evaluate import Evaluation, evaluate
from kinopoisk_ft.training.memory import (
    explain_out_of_memory,
    fit_rows_to_memory,
    halve_on_out_of_memory,
)
from kinopoisk_ft.training.monitor import Monitor, Recorder
from kinopoisk_ft.training.objective import Objective
from kinopoisk_ft.training.optim import make_scheduler, param_groups
from kinopoisk_ft.training.precision import Precision, choose_precision, synchronize
from kinopoisk_ft.training.progress import Progress
from kinopoisk_ft.training.settings import Settings
from kinopoisk_ft.training.signals import StopSignals
from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)

Audit = Callable[[nn.Module], None]


class Trainer(Settings):
    """The loop over its settings: `fit` says what a run is, `_step` what an update is."""

    def open(self, folder: Path | None = None) -> tuple[Precision, Clock]:
        """Choose device and precision, log both, and seed; done before a model is built.

        A run that goes on from a checkpoint in the folder keeps the precision chosen at first.
        """
        device, kind = choose_device(self.device), self.precision
        kept = None
        if folder is not None and kind == "auto":
            kept = broadcast_from_main(lambda: read_precision(folder))
            kind = kept or kind
        if kind == "auto" and world_size() > 1:
            kind = broadcast_from_main(lambda: choose_precision(kind, device)[0])
        precision = Precision(kind, device)
        check_strategy(
            self.strategy, self.batch_size, self.micro_batch_size, self.prefix_cache,
            self.compile, precision.kind,
        )  # fmt: skip
        reason = "chosen before the stop" if kept else precision.reason
        log.info("device %s, precision %s (%s)", device, precision.kind, reason)
        stays = self.keep_memory and keep_freed_memory()
        log.info("freed memory %s", "stays in the process" if stays else "goes back to the system")
        torch.manual_seed(self.seed)
        return precision, Clock(lambda: synchronize(device))

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
        about: Mapping[str, str] | None = None,
    ) -> State:
        """Train, evaluate when due, keep the best weights and leave them in the model.

        Goes on from the last whole checkpoint in the folder, as if it had never been stopped.

        Args:
            fresh: names of parameters that start from random values.
            audit: called with the model after the first backward pass; raises to stop the run.
            folder: where checkpoints and the best weights are kept.
            about: what a checkpoint must have in common with this run; None keeps no checkpoints.

        Raises:
            UserError: a checkpoint of another run, one that cannot be written, or numbers that
                are not finite.
            Stopped: a signal came; the state after the last whole step is kept.
        """
        state = self._setup(model, objective, precision, fresh, len(train), clock)
        best = BestWeights(folder)
        every = self.checkpoint_every
        manager = CheckpointManager(folder, state, best, clock, recorder, every, about)
        manager.resume()
        agree = all_reduce_max if world_size() > 1 else None
        with (
            self._accelerate(model, precision), clock.section("train"),
            Progress(state.step, state.steps) as progress, StopSignals(agree) as signals,
            # The manager exits first, and can still write a checkpoint before a second signal.
            prefetch(training_batches(train, state, self)) as batches, manager,
        ):  # fmt: skip
            monitor = Monitor(recorder, progress, best, self.best_metric, self.max_bad_steps)
            self._prepare(state, train, clock)
            self._evaluate_if_due(state, train, val, monitor, clock, signals)
            while state.step != state.steps and not self._is_out_of_patience(state):
                micro_batches = next(batches)
                with signals.defer():
                    self._step(state, micro_batches, audit)
                    self._log_if_due(state, micro_batches, monitor, folder)
                self._evaluate_if_due(state, train, val, monitor, clock, signals)
                manager.save_if_due()
            signals.check()
            monitor.log_losses(state)
            manager.save_last()
        if state.best_step != state.step:
            best.restore(model)
        log.info("best val %s %.4f at step %d", self.best_metric, state.best, state.best_step)
        return state

    def test(
        self, model: nn.Module, objective: Objective, examples: Examples, precision: Precision
    ) -> Evaluation:
        """Evaluate with the weights that `fit` left."""
        from kinopoisk_ft.training.acceleration.unpadded import unpadded_attention

        with unpadded_attention(model, precision):
            return evaluate(model, examples, objective, precision, self.eval_batch_size)

    @contextmanager
    def _accelerate(self, model: nn.Module, precision: Precision) -> Iterator[None]:
        """Use our dropout and attention in the model while the context is open."""
        # These modules import transformers' modelling code, which takes seconds and which TF-IDF,
        # whose config has a trainer as well, does not need.
        from kinopoisk_ft.training.acceleration.dropout import training_dropout
        from kinopoisk_ft.training.acceleration.unpadded import unpadded_attention

        with (
            training_dropout(model, precision.device, self.attention_dropout),
            unpadded_attention(model, precision),
        ):
            yield

    def _setup(
        self,
        model: nn.Module,
        objective: Objective,
        precision: Precision,
        fresh: Iterable[str],
        reviews: int,
        clock: Clock,
    ) -> State:
        wrapped = wrap_model(model, self.strategy, precision.device)
        wrapped = compile_model(wrapped, self.compile, precision.device)
        wrapped.train()
        steps = self.length.steps(self.steps_per_epoch(reviews))
        meter = Meter(self.length, clock, steps)
        warmup = self.warmup_steps
        if warmup is None:
            warmup = math.ceil(self.warmup_share * meter.total)
        groups = param_groups(
            model, fresh, lr=self.lr, head_lr=self.head_lr, weight_decay=self.weight_decay
        )
        optimizer = self.optimizer(groups, lr=self.lr)
        schedule = make_scheduler(optimizer, self.schedule, warmup, meter.total, meter.place)
        if steps is None:
            log.info("trains for %s, %.0f%% of it warm-up", self.budget, 100 * self.warmup_share)
        else:
            log.info("%d optimizer steps, %d of them warm-up", steps, warmup)
        return State(
            model, wrapped, objective, precision, optimizer, schedule, meter, steps,
            micro_batch_size=self.rows_at_once, eval_batch_size=self.eval_batch_size,
        )  # fmt: skip

    def _prepare(self, state: State, train: Examples, clock: Clock) -> None:
        """Find out, where only the system's end would tell, what memory allows; then compile."""
        if world_size() > 1:  # all make as many parts, whatever one process went down to before
            state.micro_batch_size = self.rows_at_once
        elif state.step != state.steps:
            with clock.section("probe"):
                rows, state.micro_batch_size = (
                    state.micro_batch_size,
                    fit_rows_to_memory(state, train),
                )
            if state.step and state.micro_batch_size < rows:
                log.warning(
                    "less memory is left than before the stop: %d rows at once instead of %d; from "
                    "here on sums are rounded differently", state.micro_batch_size, rows,
                )  # fmt: skip
        if state.step != state.steps and self.compile != "off":
            with clock.section("compile"):
                _, state.micro_batch_size = halve_on_out_of_memory(
                    partial(warm_up_compile, state, train),
                    state.micro_batch_size,
                    state.precision.device,
                    "compiling",
                )

    def _step(self, state: State, micro_batches: list[dict[str, Tensor]], audit: Audit) -> None:
        """One update: the loss is the mean over all labels of the effective batch, by weight."""
        seed_rank(self.seed, state.step)
        total, state.micro_batch_size = halve_on_out_of_memory(
            partial(compute_gradients, state, micro_batches),
            state.micro_batch_size,
            state.precision.device,
            "training",
        )
        state.tokens += sum(int(batch["attention_mask"].sum()) for batch in micro_batches)
        state.precision.unscale(state.optimizer)
        if state.step == 0:
            audit(state.model)
        with explain_out_of_memory("the optimizer's update"):
            status = state.precision.step(
                state.optimizer, state.model.parameters(), self.clip_norm, total
            )
        state.step_status.append(status)
        state.step += 1
        if state.meter.read(state.step, state.tokens):
            state.steps = state.step
        state.schedule.step()
        state.losses.append(total)

    def _log_if_due(
        self, state: State, micro_batches: list[dict[str, Tensor]], monitor: Monitor, folder: Path
    ) -> None:
        """The only place in training where numbers come from the device, now and then."""
        due = state.step % self.log_every == 0 or state.step == state.steps
        if due or state.precision.device.type == "cpu":
            monitor.check_finite(state, micro_batches, folder)
        if due:
            monitor.log_losses(state)

    def _evaluate_if_due(
        self,
        state: State,
        train: Examples,
        val: Examples,
        monitor: Monitor,
        clock: Clock,
        signals: StopSignals,
    ) -> None:
        """Evaluate, unless it was done before a stop: a signal can break it off, but no status."""
        every = self.steps_per_epoch(len(train)) if self.eval_every == "epoch" else self.eval_every
        due = state.step % every == 0 or state.step == state.steps
        if not due or state.evaluated == state.step:
            return
        with clock.section("val"):
            found = evaluate(
                state.model, val, state.objective, state.precision, state.eval_batch_size,
                signals.check,
            )  # fmt: skip
        state.eval_batch_size = found.batch_size
        with signals.defer(), clock.section("checkpoint"):
            monitor.log_evaluation(state, found)
        state.model.train()

    def _is_out_of_patience(self, state: State) -> bool:
        """Return whether patience is at its end."""
        if self.patience is None or state.since_best < self.patience:
            return False
        log.info("stopped early: %d evaluations without a better one", state.since_best)
        return True


def training_batches(
    train: Examples, state: State, settings: Settings
) -> Iterator[list[dict[str, Tensor]]]:
    """Yield the micro-batches of each optimizer step that is left."""
    lengths, per_epoch, first = train.lengths, settings.steps_per_epoch(len(train)), state.step
    seed, batch_size, accumulate = settings.seed, settings.batch_size, settings.accumulate
    for epoch in itertools.count(first // per_epoch):
        rows = select_epoch_rows(train, settings.sampling, seed, epoch)
        batches = [rows[batch] for batch in group_by_length(lengths[rows], batch_size, seed, epoch)]
        for step in range(max(first, epoch * per_epoch), (epoch + 1) * per_epoch):
            if step == state.steps:
                return
            start = (step - epoch * per_epoch) * accumulate
            yield [
                state.objective.collate(train, batch, np.random.default_rng([seed, epoch, i, 1]))
                for i, batch in enumerate(batches[start : start + accumulate], start)
            ]


def compute_gradients(
    state: State, micro_batches: Sequence[dict[str, Tensor]], rows: int
) -> Tensor:
    """Leave the gradients of the mean loss, `rows` rows at once; returns the loss, ().

    The mean is over all labels of the effective batch, by weight, in all processes.
    """
    state.optimizer.zero_grad(set_to_none=True)  # what an attempt left that was broken off
    count = sum(state.objective.count(batch) for batch in micro_batches)
    total = torch.zeros((), device=state.precision.device)
    shares = [shard_batch(batch) for batch in micro_batches]
    trim = not reads_pads(state.model)
    todo = [(part, counts) for mine, counts in shares for part in split_batch(mine, rows, trim)]
    for number, (part, counts) in enumerate(todo, start=1):
        part = to_device(part, state.precision.device)
        with sync_gradients(state.wrapped_model, number == len(todo)):
            with state.precision.autocast():
                loss = (
                    state.objective.loss_sum(state.wrapped_model, part)[0] / (count or 1) * counts
                )
            state.precision.backward(loss * world_size())  # gradients are averaged over the ranks
        total += loss.detach()
    return all_reduce_sum(total)
