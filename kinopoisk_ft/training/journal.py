"""Where the loop tells its numbers: the recorder, the history, the log and the progress bar."""

from __future__ import annotations

import logging
import math
from typing import Protocol

import torch

from kinopoisk_ft.training.checkpoint import BestWeights
from kinopoisk_ft.training.evaluate import Evaluation
from kinopoisk_ft.training.metrics import LOWER_IS_BETTER
from kinopoisk_ft.training.progress import Progress
from kinopoisk_ft.training.spikes import tell_spikes
from kinopoisk_ft.training.state import State

log = logging.getLogger(__name__)


class Recorder(Protocol):
    """Where metrics go."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record values at an optimizer step."""
        ...

    def flush(self) -> None:
        """Write what is buffered: a checkpoint is about to say that it was recorded."""
        ...


class Journal:
    """Tells of training losses and of evaluations; says which evaluation was the best."""

    def __init__(
        self, recorder: Recorder, progress: Progress, best: BestWeights, best_metric: str
    ) -> None:
        self.recorder, self.progress = recorder, progress
        self.best, self.best_metric = best, best_metric

    def losses(self, state: State) -> None:
        """Record mean and largest loss since the last time, of the steps where it was finite."""
        losses = torch.stack(state.losses).cpu()
        finite = losses[torch.isfinite(losses)]
        loss = float(finite.mean())
        state.losses.clear()
        tell_spikes(state, losses.tolist())
        values = {"lr": float(state.schedule.get_last_lr()[0])}
        values["micro_batch_size"] = state.micro_batch_size
        if len(finite):  # else every step was skipped
            values |= {"train_loss": loss, "train_loss_max": float(finite.max())}
            state.history.append({"step": state.step, "train_loss": loss})
        if state.skipped:
            values["skipped_steps"] = state.skipped
        if state.spikes:
            values["loss_spikes"] = state.spikes
        self.recorder.metrics(values, state.step)
        self.progress.to(state.step, loss=f"{loss:.4f}")

    def rest(self, state: State) -> None:
        """Record the losses that are not told yet, where patience ended the training."""
        if state.losses:
            state.settle()
            self.losses(state)

    def judge(self, state: State, found: Evaluation) -> None:
        """Record an evaluation; keep the weights and the outputs if it is the best so far."""
        named = {f"val_{key}": value for key, value in found.scores.items()}
        self.recorder.metrics(named, state.step)
        state.history.append({"step": state.step, **named})
        value = found.scores[self.best_metric]
        sign = -1.0 if self.best_metric in LOWER_IS_BETTER else 1.0
        state.since_best += 1
        before = -math.inf if state.best is None or math.isnan(state.best) else sign * state.best
        if state.best is None or sign * value > before:
            state.best, state.best_step, state.since_best = value, state.step, 0
            state.best_outputs = found.outputs
            self.best.save(state.model, state.step)
        state.evaluated = state.step
        text = ", ".join(f"{key} {v:.4f}" for key, v in named.items())
        log.info("step %d of %s: %s", state.step, state.length, text)
        self.progress.to(state.step, **{f"val_{self.best_metric}": f"{value:.4f}"})
