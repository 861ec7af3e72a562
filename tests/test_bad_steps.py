"""Skipped steps are told by whoever learns of them first: the look at the loss or a checkpoint.

On a GPU verdicts wait there for the next of these, so that several come at once.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from short_fit import short_fit

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.capture import capture, restore
from kinopoisk_ft.training.finite import check_finite
from kinopoisk_ft.training.state import State

BATCH = [{"input_ids": torch.ones(1, 2, dtype=torch.int64)}]


@pytest.fixture
def state(tmp_path: Path) -> State:
    return short_fit(tmp_path / "run", "trainer.max_steps=1")[0]


def leave(state: State, verdicts: list[int]) -> None:
    """Leave verdicts as a device does that nobody has waited for."""
    state.verdicts += [torch.tensor(float(verdict)) for verdict in verdicts]


def test_a_checkpoint_tells_of_steps_that_it_settles(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(state, [0, 2, 0, 2])
    capture(state)
    assert "up to step 1: 2 skipped" in caplog.text
    caplog.clear()
    check_finite(state, BATCH, 3, tmp_path)
    assert "skipped" not in caplog.text
    assert (state.skipped, state.bad_in_row) == (2, 1)


def test_a_long_row_counts_though_a_good_step_followed(state: State, tmp_path: Path) -> None:
    leave(state, [2, 2, 2, 0])
    check_finite(state, BATCH, 4, tmp_path)
    leave(state, [2, 2, 2])
    check_finite(state, BATCH, 4, tmp_path)
    leave(state, [2, 0])  # the fourth of a row that began before the last look
    with pytest.raises(UserError, match="in 4 steps in a row, up to step 1") as raised:
        check_finite(state, BATCH, 4, tmp_path)
    assert "the batch of step 1" in str(raised.value)


def test_a_long_row_is_found_after_a_checkpoint_and_a_kill(state: State, tmp_path: Path) -> None:
    leave(state, [2, 2, 2, 0])
    kept = capture(state)
    state.longest_row = 0
    restore(state, *kept)
    with pytest.raises(UserError, match="in 3 steps in a row"):
        check_finite(state, BATCH, 3, tmp_path)
