"""Test that folder names that are too long are reported before any job runs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from command_line import _here as _here
from command_line import place as place
from command_line import run
from quick import quick

from kinopoisk_ft.provenance import _find_files
from kinopoisk_ft.run_folder import MAX_NAME

DIRNAME = "hydra.sweep.subdir=${hydra.job.override_dirname}"


def test_the_limit_holds_on_this_file_system(tmp_path: Path) -> None:
    (tmp_path / ("x" * MAX_NAME)).mkdir()
    with pytest.raises(OSError, match="too long") as caught:
        (tmp_path / ("д" * (MAX_NAME // 2 + 1))).mkdir()
    assert caught.value.errno == errno.ENAMETOOLONG


@pytest.mark.parametrize("mode", [[], ["-m", "seed=1,2"]], ids=["run", "sweep"])
@pytest.mark.parametrize("folder", quick(["д" * 128, "x" * 256, f"a/{'x' * 300}/b"], 1))
def test_a_long_output_dir_is_refused(
    mode: list[str], folder: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*mode, "model=tfidf", f'output_dir="{folder}"') == 1
    shown = capsys.readouterr()
    size = max(len(name.encode()) for name in folder.split("/"))
    assert f"is {size} bytes long; file systems allow at most 255" in shown.err
    assert "Traceback" not in shown.err
    assert "job  status" not in shown.out


@pytest.mark.parametrize("mode", [[], ["-m", "seed=1,2"]], ids=["run", "sweep"])
def test_a_folder_that_cannot_be_created_is_reported(
    mode: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "file").touch()
    assert run(*mode, "model=tfidf", "output_dir=file/run") == 1
    error = capsys.readouterr().err
    assert os.strerror(errno.ENOTDIR) in error
    assert "choose another output_dir" in error
    assert "Traceback" not in error


def test_a_sweep_with_long_job_names_does_not_start(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = f"data.text_column=text,{'x' * 200}"
    assert run("-m", "model=tfidf", "output_dir=long", long, DIRNAME) == 1
    error = capsys.readouterr().err
    assert "file systems allow at most 255" in error
    assert "exclude_keys" in error
    assert not (place / "long" / "jobs").exists()


@pytest.mark.slow
def test_names_without_the_long_override_are_valid(place: Path) -> None:
    long = "data.path=" + "./" * 150 + "reviews.jsonl"
    keys = "[data.path,data,data.text_column,data.label_column]"
    short = f"hydra.job.config.override_dirname.exclude_keys={keys}"
    assert run("-m", "model=tfidf", "seed=1,2", "output_dir=short", long, DIRNAME, short) == 0
    made = [file.parent.name for file in (place / "short").rglob("result.json")]
    assert len(made) == 2
    assert all("seed=" in name for name in made)


def test_a_long_text_in_a_config_is_not_a_file() -> None:
    groups = {"model": {"name": "x" * 300}, "adapter": {}, "data": {"text_column": "y" * 5000}}
    assert _find_files(groups) == set()
