"""Record metrics, save the best weights, and detect loss spikes and non-finite gradients."""

from __future__ import annotations

import logging
import math
import statistics
from typing import Protocol

import torch
from torch import Tensor

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import wrap_checkpoint_errors, write_json_durably
from kinopoisk_ft.statistics.metrics import LOWER_IS_BETTER
from kinopoisk_ft.training.checkpoint.best import BestWeights
from kinopoisk_ft.training.checkpoint.folder import write_tensors
from kinopoisk_ft.training.evaluate import Evaluation
from kinopoisk_ft.training.progress import Progress
from kinopoisk_ft.training.settings import Settings
from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)

BAD_BATCH = "bad_batch.safetensors"
# A logged loss counts as a spike if it exceeds SPIKE_FACTOR times the median of the last WINDOW
# logged losses. It is a mean over trainer.log_every steps, which varies less than a single loss.
SPIKE_FACTOR = 3
# A smaller loss is not a spike, because the model still predicts almost all labels correctly.
MIN_SPIKE = 0.1
WINDOW = 20
# The median of fewer logged losses is not reliable.
MIN_RECORDS = 5


class Recorder(Protocol):
    """The interface through which training records metrics."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record metric values, by name, at an optimizer step."""
        ...

    def flush(self) -> None:
        """Write buffered values. Training calls this method before each checkpoint."""
        ...


class Monitor:
    """Records losses and evaluations, and saves the weights of the best evaluation.

    Args:
        settings: the settings of the run, of which `best_metric`, `max_bad_steps` and `min_steps`
            are used.
    """

    def __init__(
        self,
        recorder: Recorder,
        progress: Progress,
        best: BestWeights,
        settings: Settings,
        steps_per_epoch: int,
    ) -> None:
        self.recorder, self.progress, self.best = recorder, progress, best
        self.best_metric, self.max_bad_steps = settings.best_metric, settings.max_bad_steps
        self.min_steps = settings.min_steps or 0
        self.steps_per_epoch = steps_per_epoch

    def log_losses(self, state: State) -> None:
        """Record mean and maximum of the losses since the last call, and the last gradient norm."""
        if not state.losses:
            return
        state.sync_skipped_steps()
        # One copy for all losses, because each copy would wait for the device.
        losses = torch.stack(state.losses).cpu()
        state.losses.clear()
        finite = losses[torch.isfinite(losses)]
        values = {
            "lr": float(state.schedule.get_last_lr()[0]),
            "epoch": state.step / self.steps_per_epoch,
            "micro_batch_size": float(state.micro_batch_size),
        }
        norm = float(state.precision.grad_norm)
        # The norm is NaN before the first step of a process, and not finite in a skipped step.
        if math.isfinite(norm):
            values["grad_norm"] = norm
        # If no loss is finite, all steps were skipped, and there is no mean to record.
        if len(finite):
            values |= {"train_loss": float(finite.mean()), "train_loss_max": float(finite.max())}
            # The step with the largest finite loss, because non-finite losses are replaced by 0.
            largest = state.step - len(losses) + 1 + int(losses.nan_to_num(0, 0, 0).argmax())
            # During the warm-up, the loss may change quickly.
            if state.meter.schedule_step(state.step) > state.warmup:
                count_spike(state, values["train_loss"], largest)
            # `count_spike` compares the loss with `history`, so the loss is added afterwards.
            state.history.append({"step": state.step, "train_loss": values["train_loss"]})
        if state.skipped:
            values["skipped_steps"] = state.skipped
        if state.spikes:
            values["loss_spikes"] = state.spikes
        self.recorder.metrics(values, state.step)
        self.progress.to(state.step, loss=f"{values.get('train_loss', math.nan):.4f}")

    def log_evaluation(self, state: State, evaluation: Evaluation) -> None:
        """Record an evaluation, and save the weights if this evaluation is the best so far."""
        named = {f"val_{key}": value for key, value in evaluation.scores.items()}
        self.recorder.metrics(named, state.step)
        state.history.append({"step": state.step, **named})
        value = evaluation.scores[self.best_metric]
        sign = -1.0 if self.best_metric in LOWER_IS_BETTER else 1.0
        # Any number counts as better than NaN, and NaN as better than no evaluation.
        before = -math.inf if state.best is None or math.isnan(state.best) else sign * state.best
        # Earlier evaluations do not count, so that trainer.patience cannot stop the run before.
        state.since_best += state.step >= self.min_steps
        if state.best is None or sign * value > before:
            state.best, state.best_step, state.since_best = value, state.step, 0
            state.best_outputs = evaluation.outputs
            self.best.save(state.model, state.step)
        state.evaluated = state.step
        text = ", ".join(f"{key} {v:.4f}" for key, v in named.items())
        log.info("step %d of %s: %s", state.step, state.length, text)
        self.progress.to(state.step, **{f"val_{self.best_metric}": f"{value:.4f}"})

    def check_finite(self, state: State, micro_batches: list[dict[str, Tensor]]) -> None:
        """Stop the run after too many consecutive steps with a non-finite loss or gradient.

        This method waits for the device.

        Args:
            micro_batches: the batches of the last step, which are saved before the error is raised.

        Raises:
            UserError: there were at least `max_bad_steps` such steps.
        """
        state.sync_skipped_steps()
        longest, state.longest_row = state.longest_row, 0
        if longest < self.max_bad_steps:
            return
        # The micro-batches of a step may have different shapes, so they are saved separately.
        tensors = {
            f"{i}.{key}": value
            for i, batch in enumerate(micro_batches)
            for key, value in batch.items()
        }
        about = {"step": state.step, "lr": state.schedule.get_last_lr(), "keys": sorted(tensors)}
        file = self.best.folder / BAD_BATCH
        with wrap_checkpoint_errors(file.parent):
            write_tensors(tensors, file)
            write_json_durably(about, file.with_suffix(".json"))
        raise UserError(
            f"the loss or a gradient was NaN or infinite in {longest} consecutive steps, detected "
            f"at step {state.step} (trainer.max_bad_steps={self.max_bad_steps})",
            where=f"the batch of step {state.step}, saved in {file}",
            fix="lower trainer.lr, increase trainer.warmup_share or use trainer.precision=fp32 or "
            "bf16, and start over with resume=never",
        )


def count_spike(state: State, loss: float, step: int) -> None:
    """Count a spike and log a warning if the loss is far above the recent losses.

    Args:
        loss: mean of the finite losses since the previous call of `log_losses`.
        step: the step with the largest of these losses. The warning names this step.
    """
    records = [row["train_loss"] for row in state.history if "train_loss" in row][-WINDOW:]
    if len(records) < MIN_RECORDS or loss <= max(
        MIN_SPIKE, SPIKE_FACTOR * statistics.median(records)
    ):
        return
    state.spikes += 1
    log.warning(
        "loss spike at step %d: the mean loss logged at step %d is %.4f, but the median of the "
        "losses logged before is %.4f; spikes so far: %d. If validation scores get worse, lower "
        "trainer.lr or trainer.clip_norm, or increase trainer.warmup_share",
        step, state.step, loss, statistics.median(records), state.spikes,
    )  # fmt: skip
