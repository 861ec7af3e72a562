"""Test the records of how jobs ended, and the devices of parallel jobs."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.sweeps import jobs
from kinopoisk_ft.sweeps.forecast import Expected, read_forecast, write_forecast
from kinopoisk_ft.tracking.sweep import ParentRun, notes_folder, read_parent


def test_notes_are_atomic_and_a_damaged_one_counts_as_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError("no space left")

    jobs.Outcome(0, "unfinished", ["seed=0"]).write(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            jobs.Outcome(0, "done", ["seed=0"]).write(tmp_path)
    (notes_folder(tmp_path) / "1.json").write_text('{"job": 1, "sta')
    found = jobs.read_outcomes(tmp_path)
    assert [(one.job, one.status) for one in found] == [(0, "unfinished"), (1, "unfinished")]
    assert "1.json cannot be read" in jobs.format_outcomes(found)


def test_a_damaged_note_of_the_parent_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note = notes_folder(tmp_path) / "parent.json"
    note.parent.mkdir()
    note.write_text('"abc')
    with pytest.raises(UserError, match="start the sweep again"):
        read_parent(tmp_path)
    open_parent(tmp_path, resumed=True)
    assert "a new parent run is created" in caplog.text
    assert read_parent(tmp_path) is None


@pytest.mark.parametrize("resumed", [False, True])
def test_the_forecast_of_an_earlier_sweep_is_deleted(tmp_path: Path, resumed: bool) -> None:
    """A resumed search keeps the outcomes of its trials."""
    jobs.Outcome(0, "done", []).write(tmp_path)
    write_forecast([Expected("tfidf", False, 9.0)] * 5, tmp_path)
    open_parent(tmp_path, resumed)
    assert read_forecast(tmp_path) == []
    assert len(jobs.read_outcomes(tmp_path)) == resumed


def open_parent(sweep_dir: Path, resumed: bool) -> None:
    """Start and end the parent run of a sweep that is not tracked."""
    launcher = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    config = OmegaConf.create({
        "hydra": {"sweep": {"dir": str(sweep_dir)}, "runtime": {"choices": {}},
                  "overrides": {"task": []}, "launcher": {"_target_": launcher}},
        "tracking": {"_target_": "kinopoisk_ft.tracking.base.Tracker", "uri": None,
                     "experiment": ""},
    })  # fmt: skip
    parent = ParentRun()
    parent.open(config, resumed)
    parent.close("FINISHED")


def test_a_note_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    note = {"job": 0, "status": "done", "overrides": [], "run_id": "a", "f1_weighted": 0.9,
            "objective": 0.8, "told": "a warning"}  # fmt: skip
    file = notes_folder(tmp_path) / "0.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(note))
    (found,) = jobs.read_outcomes(tmp_path)
    expected = jobs.Outcome(
        0, "done", [], run_id="a", test_score=0.9, objective=0.8, message="a warning"
    )
    assert found == expected


def test_jobs_share_devices_evenly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with ExitStack() as others:
        first = ExitStack()
        first.enter_context(jobs.reserve_device(tmp_path))
        others.enter_context(jobs.reserve_device(tmp_path))
        # The device of the job that ends first is free for the next job.
        first.close()
        held = [others.enter_context(jobs.reserve_device(tmp_path)) for _ in range(5)]
        assert held == [0, 2, 0, 1, 2]
    assert chosen == [0, 1, 0, 2, 0, 1, 2]
    with jobs.reserve_device(tmp_path) as device:
        assert device == 0


@pytest.mark.parametrize("devices", [0, 1])
def test_one_device_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, devices: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    with jobs.reserve_device(tmp_path) as device:
        assert device is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_locks")
def test_jobs_that_share_devices_need_locks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = "jobs cannot share the GPUs, because their folder cannot be locked"
    with pytest.raises(UserError, match=message), jobs.reserve_device(tmp_path):
        pass
