"""Define the training loop for fine-tuning and pretraining."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from kinopoisk_ft.training.acceleration.compile import compile_model, warm_up_compile
from kinopoisk_ft.training.acceleration.gradient_checkpointing import recompute_activations
from kinopoisk_ft.training.batching import (
    Examples,
    depends_on_padding,
    group_by_length,
    prefetch,
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
from kinopoisk_ft.training.head_first import exclude_output_layer, fit_head
from kinopoisk_ft.training.memory import (
    explain_out_of_memory,
    fit_rows_to_memory,
    halve_on_out_of_memory,
)
from kinopoisk_ft.training.monitor import Monitor, Recorder
from kinopoisk_ft.training.objective import Objective
from kinopoisk_ft.training.optim import build_param_groups
from kinopoisk_ft.training.precision import Precision, choose_precision, synchronize
from kinopoisk_ft.training.progress import Progress
from kinopoisk_ft.training.settings import Settings
from kinopoisk_ft.training.signals import StopSignals
from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)

Audit = Callable[[nn.Module], None]


class Trainer(Settings):
    """Trains and evaluates models."""

    def open(self, folder: Path | None = None) -> tuple[Precision, Clock]:
        """Choose device and precision, seed PyTorch, and start the clock.

        This must happen before a model is built, so that the initial weights depend on the seed.
        With precision=auto, a run that resumes from a checkpoint in `folder` keeps the precision of
        this checkpoint.
        """
        device, kind = choose_device(self.device), self.precision
        original = None
        if folder is not None and kind == "auto":
            original = broadcast_from_main(lambda: read_precision(folder))
            kind = original or kind
        # The machines of a run may differ, but all ranks need the same precision.
        if kind == "auto" and world_size() > 1:
            kind = broadcast_from_main(lambda: choose_precision(kind, device)[0])
        precision = Precision(kind, device)
        check_strategy(
            self.strategy, self.batch_size, self.micro_batch_size, self.prefix_cache,
            self.compile, precision.kind,
        )  # fmt: skip
        reason = "as before the run was stopped" if original else precision.reason
        log.info("device %s, precision %s (%s)", device, precision.kind, reason)
        keeps = keep_freed_memory(self.keeps_memory(device))
        log.debug("freed memory %s", "is kept" if keeps else "returns to the system")
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
        depths: Mapping[str, int] | None = None,
    ) -> State:
        """Train the model, from a checkpoint if there is one, and load the best weights.

        Args:
            fresh, depths: see `build_param_groups`.
            audit: called with the model after the first backward pass; can raise an error.
            folder: where checkpoints and the best weights are saved.
            about: properties a checkpoint must share with this run; if None, checkpoints are off.

        Raises:
            UserError: a checkpoint cannot be used or written, memory ran out, or too many losses or
                gradients were not finite.
            Stopped: a signal stopped the run.
        """
        state = self._setup(model, objective, precision, fresh, len(train), clock, depths)
        best = BestWeights(folder)
        every = self.checkpoint_every
        manager = CheckpointManager(folder, state, best, clock, recorder, every, about)
        manager.resume()
        agree = all_reduce_max if world_size() > 1 else None
        with (
            self._accelerate(model, precision), clock.section("train"),
            Progress(state.step, state.steps) as progress, StopSignals(agree) as signals,
            # The last context exits first, so the manager can write a checkpoint after a signal.
            prefetch(training_batches(train, state, self)) as batches, manager,
        ):  # fmt: skip
            monitor = Monitor(recorder, progress, best, self, self.steps_per_epoch(len(train)))
            self._prepare(state, train, clock)
            # If the run was stopped during an evaluation, it resumes with this evaluation.
            self._evaluate_if_due(state, train, val, monitor, clock, signals)
            while state.step != state.steps and not self._is_out_of_patience(state):
                micro_batches = next(batches)
                with signals.defer():
                    self._step(state, micro_batches, audit)
                    self._log_if_due(state, micro_batches, monitor)
                self._evaluate_if_due(state, train, val, monitor, clock, signals)
                manager.save_if_due()
            signals.check()
            monitor.log_losses(state)
            manager.save_last()
        if state.best_step != state.step:
            best.restore(model)
        log.info("best val_%s %.4f at step %d", self.best_metric, state.best, state.best_step)
        return state

    def test(
        self, model: nn.Module, objective: Objective, examples: Examples, precision: Precision
    ) -> Evaluation:
        """Evaluate the model with its current weights."""
        from kinopoisk_ft.training.acceleration.unpadded import use_unpadded_attention

        rows, bar = self.eval_batch_size, Progress(0, len(examples), "test")
        with use_unpadded_attention(model, precision), bar:
            return evaluate(model, examples, objective, precision, rows, bar.advance)

    @contextmanager
    def _accelerate(self, model: nn.Module, precision: Precision) -> Iterator[None]:
        # These modules import transformers' modelling code, which takes seconds. TF-IDF runs, whose
        # config has a trainer as well, do not need it.
        from kinopoisk_ft.training.acceleration.dropout import replace_dropout
        from kinopoisk_ft.training.acceleration.unpadded import use_unpadded_attention

        with (
            replace_dropout(model, precision.device, self.attention_dropout),
            use_unpadded_attention(model, precision),
            recompute_activations(model, self.gradient_checkpointing),
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
        depths: Mapping[str, int] | None = None,
    ) -> State:
        wrapped = wrap_model(model, self.strategy, precision.device)
        wrapped = compile_model(wrapped, self.compile, precision.device)
        wrapped.train()
        steps = self.training_budget.count_steps(self.steps_per_epoch(reviews))
        meter = Meter(self.training_budget, clock, steps)
        warmup = self.count_warmup(meter.total)
        fresh = exclude_output_layer(fresh, model) if self.head_first else fresh
        groups = build_param_groups(
            model, fresh, lr=self.lr, head_lr=self.head_lr, weight_decay=self.weight_decay,
            layer_decay=self.layer_decay, depths=depths,
        )  # fmt: skip
        optimizer = self.optimizer(groups, lr=self.lr)
        schedule = LambdaLR(
            optimizer,
            lambda step: self.schedule(meter.schedule_step(step), warmup=warmup, total=meter.total),
        )
        if steps is None:
            log.info("budget %s, %.0f%% of it is warm-up", self.budget, 100 * self.warmup_share)
        else:
            log.info("%d optimizer steps, %d of them are warm-up", steps, warmup)
        return State(
            model, wrapped, objective, precision, optimizer, schedule, meter, steps,
            micro_batch_size=self.initial_micro_batch_size, eval_batch_size=self.eval_batch_size,
            warmup=warmup,
        )  # fmt: skip

    def _prepare(self, state: State, train: Examples, clock: Clock) -> None:
        if self.head_first and state.step == 0:
            balanced = "balanced" in (self.class_weights, self.sampling)
            with clock.section("head"):
                fit_head(state, train, balanced)
        if world_size() > 1:
            # All processes must split a batch into the same number of micro-batches.
            state.micro_batch_size = self.initial_micro_batch_size
        elif state.step != state.steps:
            with clock.section("probe"):
                rows = state.micro_batch_size
                state.micro_batch_size = fit_rows_to_memory(state, train)
            if state.step and state.micro_batch_size < rows:
                log.warning(
                    "less memory is available than before the run stopped, so training continues "
                    "with %d rows at once instead of %d; rounding and dropout masks may differ",
                    state.micro_batch_size, rows,
                )  # fmt: skip
        if state.step != state.steps and self.compile != "off":
            with clock.section("compile"):
                _, state.micro_batch_size = halve_on_out_of_memory(
                    partial(warm_up_compile, state, train), state.micro_batch_size,
                    state.precision.device, "compilation",
                )  # fmt: skip

    def _step(self, state: State, micro_batches: list[dict[str, Tensor]], audit: Audit) -> None:
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
        with explain_out_of_memory("the optimizer step"):
            status = state.precision.step(
                state.optimizer, state.model.parameters(), self.clip_norm, total
            )
        state.step_status.append(status)
        state.step += 1
        # If the budget is used up, this step is the last one.
        if state.meter.update(state.step, state.tokens):
            state.steps = state.step
        state.schedule.step()
        state.losses.append(total)

    def _log_if_due(
        self, state: State, micro_batches: list[dict[str, Tensor]], monitor: Monitor
    ) -> None:
        # Reading a value from a GPU waits for its queued work, so read losses only to log them.
        due = state.step % self.log_every == 0 or state.step == state.steps
        if due or state.precision.device.type == "cpu":
            monitor.check_finite(state, micro_batches)
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
        every = self.steps_per_epoch(len(train)) if self.eval_every == "epoch" else self.eval_every
        due = state.step % every == 0 or state.step == state.steps
        if not due or state.evaluated == state.step:
            return
        progress = monitor.progress.show_part("validation", len(val), signals.check)
        with clock.section("val"), progress as advance:
            evaluation = evaluate(
                state.model, val, state.objective, state.precision, state.eval_batch_size, advance
            )
        state.eval_batch_size = evaluation.batch_size
        # A signal must not interrupt the recording of the result.
        with signals.defer(), clock.section("checkpoint"):
            monitor.log_evaluation(state, evaluation)
        state.model.train()

    def _is_out_of_patience(self, state: State) -> bool:
        if self.patience is None or state.since_best < self.patience:
            return False
        log.info("stopped early: no improvement in %d evaluations", state.since_best)
        return True


def training_batches(
    train: Examples, state: State, settings: Settings
) -> Iterator[list[dict[str, Tensor]]]:
    """Yield a list of batches for each remaining optimizer step."""
    lengths, per_epoch, first = train.lengths, settings.steps_per_epoch(len(train)), state.step
    seed, batch_size, accumulate = settings.seed, settings.batch_size, settings.accumulate
    for epoch in itertools.count(first // per_epoch):
        rows = select_epoch_rows(train, settings.sampling, seed, epoch)
        batches = [rows[batch] for batch in group_by_length(lengths[rows], batch_size, seed, epoch)]
        for step in range(max(first, epoch * per_epoch), (epoch + 1) * per_epoch):
            if step == state.steps:
                return
            start = (step - epoch * per_epoch) * accumulate
            # Each batch has its own random generator, so that a resumed run masks the same tokens.
            yield [
                state.objective.collate(train, batch, np.random.default_rng([seed, epoch, i, 1]))
                for i, batch in enumerate(batches[start : start + accumulate], start)
            ]


def compute_gradients(
    state: State, micro_batches: Sequence[dict[str, Tensor]], rows: int
) -> Tensor:
    """Compute the gradients of the mean loss, and return this loss as a scalar.

    The mean is over all labels in `micro_batches`, with class weights if the objective has any.
    Each process computes a part of the rows.

    Args:
        rows: maximum number of rows of each process in a forward pass; see `split_batch`.
    """
    # A previous attempt that ran out of memory may have left gradients.
    state.optimizer.zero_grad(set_to_none=True)
    count = sum(state.objective.count(batch) for batch in micro_batches)
    total = torch.zeros((), device=state.precision.device)
    trim = not depends_on_padding(state.model)
    # Batches are split first, because FSDP needs the same number of parts in all processes.
    whole = [part for b in micro_batches for part in split_batch(b, rows * world_size(), trim)]
    for number, (part, counts) in enumerate(map(shard_batch, whole), start=1):
        part = to_device(part, state.precision.device)
        with sync_gradients(state.wrapped_model, number == len(whole)):
            with state.precision.autocast():
                loss, _ = state.objective.loss_sum(state.wrapped_model, part)
                # A row that does not count still takes part, because DDP and FSDP need all ranks.
                loss = loss / (count or 1) * counts
            # DDP and FSDP average gradients over the ranks, but the loss needs their sum.
            state.precision.backward(loss * world_size())
        total += loss.detach()
    return all_reduce_sum(total)
