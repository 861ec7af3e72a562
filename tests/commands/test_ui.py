"""The command that opens MLflow's UI: it creates a missing store atomically, and checks others."""

from __future__ import annotations

import sqlite3
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from kinopoisk_ft.commands.ui import main
from kinopoisk_ft.tracking.store_schema import check_database


def test_a_missing_store_is_complete_before_mlflow_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    commands = []

    def start(command: list[str], check: bool) -> SimpleNamespace:
        check_database(uri)
        commands.append(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", start)
    assert main(["--uri", uri]) == 0
    assert uri in commands[0]
    printed = capsys.readouterr().out
    assert "http://127.0.0.1:5000/#/experiments?workflowType=machine_learning shows" in printed


def test_a_database_of_another_program_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.db"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE reviews (text TEXT)")
    before = file.read_bytes()
    monkeypatch.setattr(subprocess, "run", None)
    assert main(["--uri", f"sqlite:///{file}"]) == 1
    assert "not an MLflow store" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_server_shows_its_own_ui(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sweep with such a store prints this command."""
    monkeypatch.setattr(subprocess, "run", None)
    assert main(["--uri", "http://me:secret@127.0.0.1:5000"]) == 0
    assert "open http://me:***@127.0.0.1:5000 in a browser" in capsys.readouterr().out
