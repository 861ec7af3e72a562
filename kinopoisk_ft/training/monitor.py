"""Follow a training: record its metrics, keep the best weights, find spikes and bad numbers."""

from __future__ import annotations

import logging
import math
import statistics
from pathlib import Path
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
from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)

BAD_BATCH = "bad_batch.safetensors"
# A recorded loss is a spike above SPIKE_FACTOR times the median of the last WINDOW records. A
# record is the mean over trainer.log_every steps, because the losses of single batches vary more.
SPIKE_FACTOR = 3
WINDOW = 20
# The median of fewer records says little.
MIN_RECORDS = 5


class Recorder(Protocol):
    """Receive metrics."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record values at an optimizer step."""
        ...

    def flush(self) -> None:
        """Write what is buffered: a checkpoint is about to say that it was recorded."""
        ...


class Monitor:
    """Record losses and evaluations, and decide which evaluation is the best.

    Args:
        max_bad_steps: in a row, with a loss or gradient that is not finite, before the run stops.
    """

    def __init__(
        self,
        recorder: Recorder,
        progress: Progress,
        best: BestWeights,
        best_metric: str,
        max_bad_steps: int,
    ) -> None:
        self.recorder, self.progress = recorder, progress
        self.best, self.best_metric, self.max_bad_steps = best, best_metric, max_bad_steps

    def log_losses(self, state: State) -> None:
        """Record mean and largest loss of the steps since the last call that had a finite loss."""
        if not state.losses:
            return
        state.sync_skipped_steps()
        losses = torch.stack(state.losses).cpu()
        state.losses.clear()
        finite = losses[torch.isfinite(losses)]
        values = {
            "lr": float(state.schedule.get_last_lr()[0]),
            "micro_batch_size": float(state.micro_batch_size),
        }
        # Without a finite loss every step was skipped.
        if len(finite):
            values |= {"train_loss": float(finite.mean()), "train_loss_max": float(finite.max())}
            largest = state.step - len(losses) + 1 + int(losses.nan_to_num(0, 0, 0).argmax())
            count_spike(state, values["train_loss"], largest)
            state.history.append({"step": state.step, "train_loss": values["train_loss"]})
        if state.skipped:
            values["skipped_steps"] = state.skipped
        if state.spikes:
            values["loss_spikes"] = state.spikes
        self.recorder.metrics(values, state.step)
        self.progress.to(state.step, loss=f"{values.get('train_loss', math.nan):.4f}")

    def log_evaluation(self, state: State, found: Evaluation) -> None:
        """Record an evaluation; keep its weights and outputs if it is the best so far."""
        named = {f"val_{key}": value for key, value in found.scores.items()}
        self.recorder.metrics(named, state.step)
        state.history.append({"step": state.step, **named})
        value = found.scores[self.best_metric]
        sign = -1.0 if self.best_metric in LOWER_IS_BETTER else 1.0
        # Any number is better than NaN, and NaN is better than nothing.
        before = -math.inf if state.best is None or math.isnan(state.best) else sign * state.best
        state.since_best += 1
        if state.best is None or sign * value > before:
            state.best, state.best_step, state.since_best = value, state.step, 0
            state.best_outputs = found.outputs
            self.best.save(state.model, state.step)
        state.evaluated = state.step
        text = ", ".join(f"{key} {v:.4f}" for key, v in named.items())
        log.info("step %d of %s: %s", state.step, state.length, text)
        self.progress.to(state.step, **{f"val_{self.best_metric}": f"{value:.4f}"})

    def check_finite(
        self, state: State, micro_batches: list[dict[str, Tensor]], folder: Path
    ) -> None:
        """Stop a run whose steps are all skipped; waits for the device.

        Raises:
            UserError: max_bad_steps in a row were skipped since the last call, or up to then. The
                batch of the last step is in `folder`.
        """
        state.sync_skipped_steps()
        row, state.longest_row = state.longest_row, state.bad_in_row
        if row < self.max_bad_steps:
            return
        tensors = {
            f"{i}.{key}": value
            for i, batch in enumerate(micro_batches)
            for key, value in batch.items()
        }
        about = {"step": state.step, "lr": state.schedule.get_last_lr(), "keys": sorted(tensors)}
        with wrap_checkpoint_errors(folder):
            write_tensors(tensors, folder / BAD_BATCH)
            write_json_durably(about, (folder / BAD_BATCH).with_suffix(".json"))
        raise UserError(
            f"the loss or a gradient was not finite in {row} steps in a row, up to step "
            f"{state.step}",
            where=f"the batch of step {state.step}: {folder / BAD_BATCH}",
            fix="lower trainer.lr, use a longer warm-up or trainer.precision=fp32 or bf16, and "
            "start with resume=never; change the limit with trainer.max_bad_steps",
        )


def count_spike(state: State, loss: float, step: int) -> None:
    """Count a recorded loss that is a spike, and warn of it.

    Args:
        loss: the mean since the last record.
        step: the one with the largest loss among them.
    """
    records = [row["train_loss"] for row in state.history if "train_loss" in row][-WINDOW:]
    if len(records) < MIN_RECORDS or loss <= SPIKE_FACTOR * statistics.median(records):
        return
    state.spikes += 1
    log.warning(
        "loss spike at step %d: a mean loss of %.4f up to step %d, where the median before was "
        "%.4f; spikes so far: %d. If the scores suffer, lower trainer.lr or trainer.clip_norm, or "
        "use a longer warm-up", step, loss, state.step, statistics.median(records), state.spikes,
    )  # fmt: skip
