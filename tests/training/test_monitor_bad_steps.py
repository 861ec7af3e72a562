"""Check that skipped steps are reported by the first reader: the check of the loss or a checkpoint.

On a GPU the statuses of steps stay on the device until then, so several arrive at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpointed import Recorder, fit, weights
from safetensors.torch import load_file
from short_fit import short_fit
from torch import nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.checkpoint.best import BestWeights
from kinopoisk_ft.training.monitor import Monitor
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.precision import OVERFLOW, Precision
from kinopoisk_ft.training.progress import Progress
from kinopoisk_ft.training.state import State

BATCH = [{"input_ids": torch.ones(1, 2, dtype=torch.int64)}]


@pytest.fixture
def state(tmp_path: Path) -> State:
    return short_fit(tmp_path / "run", "trainer.max_steps=1")[0]


def check(state: State, most: int, folder: Path) -> None:
    settings: Any = SimpleNamespace(best_metric="loss", max_bad_steps=most, min_steps=None)
    with Progress(0, None) as progress:
        monitor = Monitor(Recorder(), progress, BestWeights(folder), settings, 1)
        monitor.check_finite(state, BATCH)


def leave(state: State, statuses: list[int]) -> None:
    """Leave step statuses on the device, as before the next synchronization."""
    state.step_status += [torch.tensor(float(status)) for status in statuses]


def test_a_checkpoint_tells_of_steps_that_it_settles(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(state, [0, 2, 0, 2])
    state.state_dict()
    assert "2 steps up to step 1 were skipped" in caplog.text
    caplog.clear()
    check(state, 3, tmp_path)
    assert "skipped" not in caplog.text
    assert (state.skipped, state.bad_in_row) == (2, 1)


def test_a_long_row_counts_though_a_good_step_followed(state: State, tmp_path: Path) -> None:
    leave(state, [2, 2, 2, 0])
    check(state, 4, tmp_path)
    leave(state, [2, 2, 2])
    check(state, 4, tmp_path)
    # The fourth bad step in a row, which began before the last check.
    leave(state, [2, 0])
    with pytest.raises(UserError, match="in 4 consecutive steps, detected at step 1") as raised:
        check(state, 4, tmp_path)
    assert "the batch of step 1" in str(raised.value)


def test_a_long_row_is_found_after_a_checkpoint_and_a_kill(state: State, tmp_path: Path) -> None:
    leave(state, [2, 2, 2, 0])
    kept = state.state_dict()
    state.longest_row = 0
    state.load_state_dict(kept)
    with pytest.raises(UserError, match="in 3 consecutive steps"):
        check(state, 3, tmp_path)


@pytest.mark.parametrize(("scale", "row"), [(65536.0, 0), (1.0, 0), (0.5, 3)])
def test_overflows_count_only_with_a_small_loss_scale(state: State, scale: float, row: int) -> None:
    """With a large scale, gradients in fp16 may overflow although the training is stable."""
    state.precision = Precision("fp16", torch.device("cpu"))
    state.precision.load_state_dict({**state.precision.state_dict(), "scale": scale})
    leave(state, [OVERFLOW] * 3)
    state.sync_skipped_steps()
    assert (state.skipped, state.bad_in_row) == (3, row)


@pytest.fixture
def poisoned(unprobed: None, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The steps whose loss becomes infinite; tests add their numbers."""
    chosen: set[int] = set()
    loss_sum, calls = Classification.loss_sum, [0]

    def poison(self: Classification, model: nn.Module, batch: Any) -> Any:
        loss, logits = loss_sum(self, model, batch)
        if not model.training:
            return loss, logits
        calls[0] += 1
        return (loss * float("inf") if calls[0] in chosen else loss), logits

    monkeypatch.setattr(Classification, "loss_sum", poison)
    return chosen


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_with_bad_numbers_is_skipped(
    optimizer: str, poisoned: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused and other optimizers do not change weights or state in a skipped step."""
    seen: list[tuple[torch.Tensor, str]] = []
    step = Precision.step

    def watched(self: Precision, optimizer: Any, parameters: Any, *rest: Any) -> Any:
        parameters = list(parameters)
        verdict = step(self, optimizer, parameters, *rest)
        flat = torch.cat([p.detach().flatten() for p in parameters])
        state = optimizer.state_dict()["state"]
        inner = [v.clone() for s in state.values() for v in s.values() if torch.is_tensor(v)]
        seen.append((flat, str([t.double().sum().item() for t in inner])))
        return verdict

    monkeypatch.setattr(Precision, "step", watched)
    poisoned |= {4, 5}
    recorder = Recorder()
    state = fit(tmp_path, f"trainer/optimizer={optimizer}", recorder=recorder)
    assert state.step == 10
    assert (state.skipped, state.bad_in_row) == (2, 0)
    for after in (3, 4):
        assert torch.equal(seen[after][0], seen[2][0])
        assert seen[after][1] == seen[2][1]
    assert not torch.equal(seen[5][0], seen[2][0])
    assert recorder.values[(10, "skipped_steps")] == 2
    assert (4, "train_loss") not in recorder.values
    assert torch.isfinite(weights(state)).all()


def test_too_many_bad_steps_in_a_row_stop_the_run(poisoned: set[int], tmp_path: Path) -> None:
    poisoned |= {2, 4, 5, 6}
    with pytest.raises(UserError, match="in 3 consecutive steps, detected at step 6") as raised:
        fit(tmp_path, "trainer.max_bad_steps=3")
    assert "bad_batch.safetensors" in str(raised.value)
    batch = load_file(tmp_path / "bad_batch.safetensors")
    assert batch["0.input_ids"].shape == batch["0.attention_mask"].shape
    assert json.loads((tmp_path / "bad_batch.json").read_text())["step"] == 6
