"""Check which checkpoints are written and kept, and how a run resumes from one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpointed import Recorder, fit, steps, weights
from gpu import ON_GPU
from torch import nn

from kinopoisk_ft import files
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.training.checkpoint.folder import KEPT, CheckpointFolder
from kinopoisk_ft.training.checkpoint.manager import digest_frozen_weights, read_precision
from kinopoisk_ft.training.objective import Classification
from kinopoisk_ft.training.signals import Stopped


def test_two_checkpoints_and_their_bests_are_kept(tmp_path: Path) -> None:
    recorder = Recorder()
    fit(tmp_path, "trainer.checkpoint_every=1", "trainer.eval_every=1", recorder=recorder)
    snapshots = CheckpointFolder(tmp_path)
    assert len(snapshots.folders()) == KEPT == 2
    assert steps(tmp_path) == [9, 10]
    kept = {file.name for file in tmp_path.glob("best-*")}
    assert snapshots.list_external_files() <= kept
    assert len(kept) <= 2
    assert recorder.flushed == 10
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("device", [ON_GPU])
def test_a_resumed_run_goes_on_with_the_same_masks(device: str, tmp_path: Path) -> None:
    """Otherwise, the losses after the interruption would be different."""
    place, whole, rest = f"trainer.device={device}", Recorder(), Recorder()
    fit(tmp_path / "whole", place, recorder=whole)

    def stop(step: int) -> None:
        if step == 7:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "broken", place, recorder=Recorder(stop))
    fit(tmp_path / "broken", place, recorder=rest)
    assert min(step for step, _ in rest.values) == 7
    for key, value in rest.values.items():
        assert value == pytest.approx(whole.values[key], abs=1e-4), key


def test_adapters_save_what_trains_alone(tmp_path: Path) -> None:
    state = fit(tmp_path, adapter="lora")
    found = CheckpointFolder(tmp_path).newest()
    assert found is not None
    names = {
        n.removeprefix("state/weights/")
        for n in found.load_tensors()
        if n.startswith("state/weights/")
    }
    trained = {n for n, p in state.model.named_parameters() if p.requires_grad}
    assert names == trained | {n for n, _ in state.model.named_buffers()}
    assert not any("query.base_layer" in name for name in names)


def test_another_base_or_other_data_are_refused(tmp_path: Path) -> None:
    fit(tmp_path, adapter="head")

    def other(module: nn.Module) -> None:
        with torch.no_grad():
            next(p for p in module.parameters() if not p.requires_grad)[0] += 1

    with pytest.raises(UserError, match=r"frozen weights: \w+ in the checkpoint, \w") as refused:
        fit(tmp_path, adapter="head", prepare=other)
    assert "resume=never" in str(refused.value)
    with pytest.raises(UserError, match="data: tiny in the checkpoint, large in this"):
        fit(tmp_path, adapter="head", about={"data": "large"})


def test_other_labels_are_refused_unless_an_earlier_version_did_not_store_them(
    tmp_path: Path,
) -> None:
    data = {"data": "tiny"}
    fit(tmp_path / "earlier", about=data)
    fit(tmp_path / "earlier", about=data | {"labels": "new"})
    fit(tmp_path / "now", about=data | {"labels": "old"})
    with pytest.raises(UserError, match="labels: old in the checkpoint, new in this run"):
        fit(tmp_path / "now", about=data | {"labels": "new"})


def test_digest_frozen_weights_sees_every_bit() -> None:
    model = nn.Linear(3, 2).requires_grad_(False)
    before = digest_frozen_weights(model)
    with torch.no_grad():
        model.weight[0, 0] = torch.nextafter(model.weight[0, 0], torch.tensor(9.0))
    assert digest_frozen_weights(model) != before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_ends_the_run_and_leaves_the_checkpoint(
    code: int, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("kinopoisk_ft.training.checkpoint.folder.save_file", fail)
    with pytest.raises(UserError, match=os.strerror(code)) as raised:
        fit(checkpoints)
    assert "run the same command again" in str(raised.value)
    monkeypatch.undo()
    assert steps(checkpoints) == [6, 8]
    assert CheckpointFolder(checkpoints).newest() is not None
    assert not list(checkpoints.glob("*.part"))


def test_space_is_checked_before_writing(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MARGIN", 2**60)
    with pytest.raises(UserError, match=r"a margin of .* MiB, but only"):
        fit(checkpoints)
    assert steps(checkpoints) == [6, 8]


@pytest.mark.parametrize("every", ["2", "0"])
def test_full_disk_is_reported_before_training(
    every: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MARGIN", 2**60)
    recorder = Recorder()
    with pytest.raises(UserError, match=r"a margin of .* MiB, but only"):
        fit(tmp_path, f"trainer.checkpoint_every={every}", recorder=recorder)
    assert not recorder.values


def test_a_training_that_is_done_needs_no_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fit(tmp_path / "whole", "trainer.checkpoint_every=100")

    def full(*_: object) -> None:
        raise UserError("the checkpoint could not be written: no space")

    monkeypatch.setattr(CheckpointFolder, "write", full)
    state = fit(tmp_path / "full", "trainer.checkpoint_every=100")
    assert torch.equal(weights(state), weights(whole))
    assert "checkpoint after the last step: the checkpoint could not be written" in caplog.text


def test_folder_that_cannot_be_created_is_reported() -> None:
    with pytest.raises(UserError, match="could not be written"):
        fit(Path("/proc/no/checkpoints"))


def test_no_checkpoints_where_none_are_wanted(tmp_path: Path) -> None:
    fit(tmp_path, "trainer.checkpoint_every=0")
    assert not CheckpointFolder(tmp_path).folders()
    assert len(list(tmp_path.glob("best-*"))) == 1


def test_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first one is due, because the interval grows with the duration of a write."""
    fit(tmp_path, "trainer.checkpoint_every=null")
    assert not CheckpointFolder(tmp_path).folders()
    monkeypatch.setattr("kinopoisk_ft.training.checkpoint.manager.SECONDS", 0.0)
    monkeypatch.setattr("kinopoisk_ft.training.checkpoint.manager.MIN_RATIO", 10**9)
    fit(tmp_path, "trainer.checkpoint_every=null")
    assert steps(tmp_path) == [1]
    shutil.rmtree(tmp_path)
    monkeypatch.setattr("kinopoisk_ft.training.checkpoint.manager.MIN_RATIO", 0)
    fit(tmp_path, "trainer.checkpoint_every=null")
    assert steps(tmp_path) == [9, 10]


@pytest.mark.parametrize("ending", ["trainer.eval_every=4", "trainer.patience=1"])
def test_what_fails_after_training_does_not_cost_it(ending: str, tmp_path: Path) -> None:
    trained = fit(tmp_path, "trainer.checkpoint_every=100", ending)
    assert steps(tmp_path) == [trained.step]
    again = Recorder()
    state = fit(tmp_path, "trainer.checkpoint_every=100", ending, recorder=again)
    assert not again.values
    assert torch.equal(weights(state), weights(trained))
    assert state.history == trained.history


def test_less_memory_after_a_stop_is_reported(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kinopoisk_ft.training.loop.fit_rows_to_memory", lambda *_: 2)
    fit(checkpoints)
    warnings = [r.message for r in caplog.records if "less memory is available" in r.message]
    assert len(warnings) == 1
    # The shape of a micro-batch decides which numbers dropout draws.
    assert "2 rows at once instead of 8; rounding and dropout masks may differ" in warnings[0]


def test_where_nothing_is_written_what_is_there_goes_on(
    checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = Recorder(lambda step: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        fit(checkpoints, "trainer.checkpoint_every=0", recorder=stop)
    assert "run the same command again to continue" in caplog.text


def test_seconds_and_precision_go_on(checkpoints: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = CheckpointFolder(checkpoints).folders()[-1] / "state.json"
    assert json.loads(file.read_text())["clock"]["seconds"]["train"] > 0
    assert read_precision(checkpoints) == "fp32"
    with caplog.at_level("INFO"):
        fit(checkpoints, "trainer.precision=auto")
    assert "precision fp32 (as before the run was stopped)" in caplog.text


def test_a_signal_in_evaluation_leaves_it_to_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    scores = Classification.scores

    def stop(*args: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return scores(*args)

    monkeypatch.setattr(Classification, "scores", stop)
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path, "trainer.checkpoint_every=9")
    assert stopped.value.exit_code == 143
    assert steps(tmp_path) == [3]
    monkeypatch.undo()
    recorder = Recorder()
    state = fit(tmp_path, "trainer.checkpoint_every=9", recorder=recorder)
    assert [s for s, key in recorder.values if key == "val_loss"] == [3, 6, 9, 10]
    whole = fit(tmp_path_factory.mktemp("whole"))
    assert torch.equal(weights(state), weights(whole))
