"""Where the loop tells its numbers: the recorder, the history, the log and the progress bar."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import write_plain, writing
from kinopoisk_ft.training.checkpoint.best import BestWeights
from kinopoisk_ft.training.checkpoint.folder import write_tensors
from kinopoisk_ft.training.evaluate import Evaluation
from kinopoisk_ft.training.metrics import LOWER_IS_BETTER
from kinopoisk_ft.training.progress import Progress
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
            state.sync_skipped_steps()
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


REMEMBERED = 100  # steps whose losses say what is usual
FEWEST = 20  # steps before which nothing is
FAR = 3  # times as far above the median as the largest loss
UNDONE = 0.25  # and this part of what training has won since its first record is lost
LEAST = 0.25  # and so much of the median, where losses hardly differ


def tell_spikes(state: State, losses: Sequence[float]) -> None:
    """Count and warn of spikes among the losses of the last steps.

    Args:
        losses: of the steps up to the state's, in their order; not finite where one was skipped.
    """
    first = next((row["train_loss"] for row in state.history if "train_loss" in row), None)
    found: list[tuple[float, int, float]] = []
    for step, loss in enumerate(losses, start=state.step - len(losses) + 1):
        if not math.isfinite(loss):
            continue
        most = _most(state.recent, first)
        if loss > most:
            found.append((loss, step, most))
        # A loss that stays high is soon what is usual; one that comes down again is not.
        state.recent = [*state.recent, min(loss, most)][-REMEMBERED:]
    state.spikes += len(found)
    if found:
        loss, step, most = max(found)
        log.warning(
            "loss spike at step %d: %.4f, where the steps before allow for %.4f; spikes up to step "
            "%d: %d new, %d in all. If the scores suffer, lower trainer.lr or trainer.clip_norm, "
            "or warm up for longer",
            step, loss, most, state.step, len(found), state.spikes,
        )  # fmt: skip


def _most(recent: Sequence[float], first: float | None) -> float:
    """Return the loss above which a step is a spike."""
    if len(recent) < FEWEST:
        return math.inf
    middle = statistics.median(recent)
    won = 0.0 if first is None else first - middle
    return middle + max(FAR * (max(recent) - middle), UNDONE * won, LEAST * abs(middle))


BATCH = "bad_batch.safetensors"


def check_finite(
    state: State, micro_batches: list[dict[str, Tensor]], most: int, folder: Path
) -> None:
    """Stop a run of which no good can come; this waits for the device.

    Raises:
        UserError: `most` steps in a row were skipped since the last time, or up to then; the batch
            of the last step is in `folder`.
    """
    state.sync_skipped_steps()
    row, state.longest_row = state.longest_row, state.bad_in_row
    if row < most:
        return
    with writing(folder):
        tensors = {
            f"{i}.{key}": value
            for i, batch in enumerate(micro_batches)
            for key, value in batch.items()
        }
        write_tensors(tensors, folder / BATCH)
        about = {"step": state.step, "lr": state.schedule.get_last_lr(), "keys": sorted(tensors)}
        write_plain(about, (folder / BATCH).with_suffix(".json"))
    raise UserError(
        f"the loss or a gradient was not finite in {row} steps in a row, up to step {state.step}",
        where=f"the batch of step {state.step}: {folder / BATCH}",
        fix="lower trainer.lr, train longer warm-up, use trainer.precision=fp32 or bf16, and start "
        "with resume=never; trainer.max_bad_steps says how many are borne",
    )
