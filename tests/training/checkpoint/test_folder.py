"""Check that damaged, unreadable and foreign checkpoints are not used."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpointed import fit, steps, weights
from torch import nn

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.checkpoint.best import BestWeights
from kinopoisk_ft.training.checkpoint.folder import CheckpointFolder


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_damaged_checkpoint_is_reported_and_the_previous_one_used(
    name: str, damage: Callable[[Path], None], checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last = CheckpointFolder(checkpoints).folders()[-1]
    damage(last / name)
    found = CheckpointFolder(checkpoints).newest()
    assert found is not None
    assert found.plain["state"]["step"] == 6
    assert f"deleting the checkpoint {last}" in caplog.text
    assert not last.exists()


def test_damage_changes_no_result(checkpoints: Path, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")
    for name in ("state.safetensors", "manifest.json"):
        flip(CheckpointFolder(checkpoints).folders()[-1] / name)
    # No valid checkpoint is left, so the run starts over.
    state = fit(checkpoints)
    assert torch.equal(weights(state), weights(whole))
    assert state.history == whole.history


@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
def test_a_checkpoint_that_cannot_be_read_stays_and_the_one_before_is_used(
    name: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, last = CheckpointFolder(checkpoints).folders()
    bests = sorted(checkpoints.glob("best-*"))
    failing = [last / name]
    open_file = Path.open

    def fail(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self in failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_file(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    found = CheckpointFolder(checkpoints).newest()
    assert found is not None
    assert found.folder == before
    assert f"skipping the checkpoint {last}, because it cannot be read" in caplog.text
    BestWeights(checkpoints).discard()
    assert sorted(checkpoints.glob("best-*")) == bests
    failing.append(before / name)
    with pytest.raises(UserError, match="cannot be read, and no other one is valid") as raised:
        fit(checkpoints)
    assert str(last) in str(raised.value)
    monkeypatch.undo()
    assert steps(checkpoints) == [6, 8]


def test_unreadable_best_weights_are_reported(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    best = BestWeights(checkpoints)
    best.file, best.digest = next(checkpoints.glob("best-*")), "0" * 64
    monkeypatch.setattr("kinopoisk_ft.training.checkpoint.best.compute_sha256", fail)
    with pytest.raises(UserError, match="best weights of this run cannot be read") as raised:
        best.restore(nn.Linear(1, 1))
    assert str(best.file) in str(raised.value)
    assert "the same command again" in str(raised.value)


def test_damaged_best_weights_spoil_the_checkpoints_that_hold_on_to_them(checkpoints: Path) -> None:
    for file in checkpoints.glob("best-*"):
        flip(file)
    assert CheckpointFolder(checkpoints).newest() is None
    best = BestWeights(checkpoints)
    with pytest.raises(UserError, match="missing or damaged"):
        best.restore(nn.Linear(1, 1))
