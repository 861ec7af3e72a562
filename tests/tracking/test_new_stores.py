"""Stores that a sweep opens: two processes make one, and what is not ours is not touched."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking.experiment import open_experiment


def test_stores_that_are_not_ours_are_told_before_they_are_touched(tmp_path: Path) -> None:
    for version, told in ((None, "no MLflow store"), ("abc", "another MLflow version")):
        file = tmp_path / f"{version}.db"
        with sqlite3.connect(file) as database:
            database.execute("CREATE TABLE alembic_version (version_num TEXT)")
            if version:
                database.execute("CREATE TABLE experiments (x)")
                database.execute("CREATE TABLE runs (x)")
                database.execute("INSERT INTO alembic_version VALUES (?)", (version,))
        before = file.read_bytes()
        with pytest.raises(UserError, match=told):
            open_experiment(f"sqlite:///{file}", "e", None)
        assert file.read_bytes() == before


@pytest.mark.slow
def test_two_processes_make_one_store(tmp_path: Path) -> None:
    code = "import sys; from kinopoisk_ft.tracking.experiment import open_experiment as o; "
    code += "print(o(sys.argv[1], 'e', None)[1])"
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1] != ""
