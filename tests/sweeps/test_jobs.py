"""The notes of a sweep are whole, and a damaged one is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.sweeps import jobs
from kinopoisk_ft.tracking.sweep import ParentRun, notes_folder, read_parent


def test_notes_are_whole_and_a_damaged_one_tells_of_no_end(
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
    found = jobs.outcomes(tmp_path)
    assert [(one.job, one.status) for one in found] == [(0, "unfinished"), (1, "unfinished")]
    assert "1.json cannot be read" in jobs.table(found)


def test_a_damaged_note_of_the_parent_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parent = ParentRun()
    config = OmegaConf.create({
        "hydra": {"sweep": {"dir": str(tmp_path)}, "runtime": {"choices": {}},
                  "overrides": {"task": []}},
        "tracking": {"_target_": "kinopoisk_ft.tracking.base.NoTracker", "uri": None,
                     "experiment": ""},
    })  # fmt: skip
    note = notes_folder(tmp_path) / "parent.json"
    note.parent.mkdir()
    note.write_text('"abc')
    with pytest.raises(UserError, match="start the sweep again"):
        read_parent(tmp_path)
    parent.open(config, resumed=True)
    assert "a new parent run is created" in caplog.text
    assert read_parent(tmp_path) is None
    parent.close("FINISHED")


def test_a_note_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    note = {"job": 0, "status": "done", "overrides": [], "run_id": "a", "f1_weighted": 0.9,
            "objective": 0.8, "told": ""}  # fmt: skip
    file = notes_folder(tmp_path) / "0.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(note))
    (found,) = jobs.outcomes(tmp_path)
    assert (found.status, found.test_score, found.objective) == ("done", 0.9, 0.8)
