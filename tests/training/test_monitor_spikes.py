"""Check that only loss spikes are reported and counted, also in a resumed run."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from short_fit import Recorder, short_fit
from torch import nn

from kinopoisk_ft.training.monitor import count_spike
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.state import State

STEPS = np.arange(2000)


def count(losses: np.ndarray, every: int = 10) -> int:
    """Count the spikes among losses that are recorded as the monitor records them."""
    state: Any = SimpleNamespace(step=0, spikes=0, history=[])
    for start in range(0, len(losses), every):
        part = losses[start : start + every]
        state.step += len(part)
        mean = float(part[np.isfinite(part)].mean())
        count_spike(state, mean, state.step)
        state.history += [{"step": state.step, "train_loss": mean}, {"step": state.step}]
    found: int = state.spikes
    return found


def ordinary(name: str) -> np.ndarray:
    """Return the losses of 2,000 steps without spikes."""
    rng = np.random.default_rng(0)
    fall = 0.6 * np.exp(-STEPS / 150)
    misjudged = rng.random((2000, 16)) < 0.05
    late = np.where(misjudged, rng.exponential(2, (2000, 16)), rng.exponential(0.05, (2000, 16)))
    return {
        "no progress": 0.69 + 0.02 * rng.standard_normal(2000),
        "small batches": rng.exponential(0.3, 2000),
        "falling start": 3 + 7 * np.exp(-STEPS / 50) + 0.05 * rng.standard_normal(2000),
        "few mistakes": fall + late.mean(axis=1),
        "skipped": np.where(STEPS % 7 == 0, np.inf, 0.5 + 0.05 * rng.standard_normal(2000)),
    }[name]


NAMES = ["no progress", "small batches", "falling start", "few mistakes", "skipped"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("every", [10, 50])
def test_noise_and_a_falling_start_are_no_spikes(name: str, every: int) -> None:
    assert count(ordinary(name), every) == 0


@pytest.mark.parametrize("every", [1, 10, 20])
def test_leaps_are_counted(every: int) -> None:
    losses = ordinary("falling start")
    losses[[305, 705, 1505]] *= 50
    assert count(losses, every) == 3


def test_a_loss_that_stays_high_is_soon_usual() -> None:
    losses = ordinary("no progress")
    losses[1000:] += 5
    assert count(losses) == 10, "half of the records that make the median"


def leaps_at(step: int) -> Any:
    """Return a hook that multiplies the training loss of one step; the process starts at step 1."""
    loss_sum, calls = Classification.loss_sum, [0]

    def leap(self: Classification, model: nn.Module, batch: Any) -> Any:
        loss, logits = loss_sum(self, model, batch)
        calls[0] += model.training
        return (loss * 50 if model.training and calls[0] == step else loss), logits

    return leap


def fit(folder: Path, recorder: Recorder | None = None, *overrides: str) -> tuple[State, Recorder]:
    """Train for 32 steps."""
    more = ["trainer.epochs=8", "trainer.log_every=4", "trainer.checkpoint_every=3", *overrides]
    return short_fit(folder, *more, recorder=recorder)


def test_a_run_warns_records_and_remembers_over_a_stop(
    unprobed: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Classification, "loss_sum", leaps_at(26))
    whole, recorder = fit(tmp_path / "whole")
    pattern = r"loss spike at step (\d+): .* step (\d+) is .*; spikes so far: 1"
    assert re.findall(pattern, caplog.text) == [("26", "28")]
    assert {s: v for (s, key), v in recorder.values.items() if key == "loss_spikes"} == {
        28: 1, 32: 1
    }  # fmt: skip
    largest, mean = (recorder.values[28, key] for key in ("train_loss_max", "train_loss"))
    assert largest > 10 * recorder.values[24, "train_loss_max"]
    assert recorder.values[24, "train_loss_max"] > recorder.values[24, "train_loss"]
    assert mean < largest < 4 * mean

    def stop(step: int) -> None:
        if step == 24:
            raise KeyError("power cut")

    monkeypatch.undo()
    with pytest.raises(KeyError):
        fit(tmp_path / "broken", Recorder(stop))
    monkeypatch.setattr(Classification, "loss_sum", leaps_at(26 - 21))
    again, found = fit(tmp_path / "broken")
    assert (again.history, again.spikes) == (whole.history, whole.spikes)
    assert found.values == {key: v for key, v in recorder.values.items() if key[0] > 21}


def test_a_small_loss_is_no_spike() -> None:
    losses = np.full(400, 0.001)
    losses[300:310] = 0.09
    assert count(losses) == 0
    losses[300:310] = 0.2
    assert count(losses) == 1


def test_a_leap_during_the_warm_up_is_no_spike(
    unprobed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classification, "loss_sum", leaps_at(26))
    assert fit(tmp_path, None, "trainer.warmup_steps=28")[0].spikes == 0
