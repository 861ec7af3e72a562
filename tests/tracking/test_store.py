"""Test new and existing stores: a killed creation is repeated, and no run is deleted."""

from __future__ import annotations

import functools
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import mlflow.store.db.utils as mlflow_db
import pytest
from killed import dies
from mlflow import MlflowClient
from places import HELPERS
from store_template import create_tables

from kinopoisk_ft.checks.store_check import check_store as check_store
from kinopoisk_ft.commands.report import main as report
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking.store import (
    absolute_uri,
    find_experiment,
    get_database_file,
    open_experiment,
    open_store,
)
from kinopoisk_ft.tracking.store_schema import UnfinishedError, check_database


def address(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def works(folder: Path) -> None:
    """Check that a run can be logged and that no temporary file is left."""
    client, experiment = open_experiment(address(folder), "e", None)
    run = client.create_run(experiment)
    assert client.get_run(run.info.run_id).info.experiment_id == experiment
    assert {file.name for file in folder.iterdir()} <= {"mlflow.db", "mlflow.db.lock"}


def half_created(folder: Path, statements: int) -> Path:
    """Create a store in place and kill the creation before a statement, a minute ago."""
    uri, file = address(folder), folder / "mlflow.db"
    assert dies(lambda: create_tables(mlflow_db.create_sqlalchemy_engine(uri)), statements, True)
    if file.exists():
        os.utime(file, (time.time() - 60,) * 2)
    return file


def rows_of(file: Path) -> tuple[list[str], bytes]:
    with sqlite3.connect(file) as database:
        return list(database.iterdump()), file.read_bytes()


@pytest.mark.parametrize("moment", [0, 2, 3, 10, 25])
def test_a_killed_creation_leaves_no_store_or_a_complete_one(tmp_path: Path, moment: int) -> None:
    uri = address(tmp_path)
    assert dies(functools.partial(open_experiment, uri, "e", None), moment, statements=True)
    if (tmp_path / "mlflow.db").exists():
        check_database(uri)
    works(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [1, 5, 20, 80, 200, 500, 900, 1300, 1600, 1660, 1670, 1690])
def test_a_killed_creation_by_migrations_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    monkeypatch.setattr(mlflow_db, "_initialize_tables", create_tables)
    dies(functools.partial(open_experiment, address(tmp_path), "e", None), moment, statements=True)
    works(tmp_path)


@pytest.mark.parametrize("statements", [8, 30, pytest.param(700, marks=pytest.mark.slow)])
def test_an_incomplete_store_of_an_earlier_version_is_created_again(
    tmp_path: Path, statements: int, capsys: pytest.CaptureFixture[str]
) -> None:
    half_created(tmp_path, statements)
    with pytest.raises(UnfinishedError, match="incomplete and empty"):
        check_database(address(tmp_path))
    assert report(["--uri", address(tmp_path)]) == 1
    assert "start a training run, which creates the store again" in capsys.readouterr().err
    works(tmp_path)


def test_an_empty_file_becomes_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mlflow.db"
    file.touch()
    os.utime(file, (time.time() - 60,) * 2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address(tmp_path))
    (finding,) = check_store()
    assert "creates the store again" in str(finding.fix)
    works(tmp_path)


def test_a_growing_file_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program completes the store after the first check."""
    whole = tmp_path / "whole"
    whole.mkdir()
    client, _ = open_experiment(address(whole), "another program's", None)
    file = half_created(tmp_path, 8)
    os.utime(file)
    monkeypatch.setattr(
        "kinopoisk_ft.tracking.store.time.sleep",
        lambda _: os.replace(whole / "mlflow.db", file),
    )
    client, _ = open_experiment(address(tmp_path), "e", None)
    assert client.get_experiment_by_name("another program's")


def test_an_incomplete_store_from_the_future_is_waited_for_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was set back after the interruption."""
    file = half_created(tmp_path, 8)
    os.utime(file, (time.time() + 3600,) * 2)
    waits: list[float] = []
    monkeypatch.setattr("kinopoisk_ft.tracking.store.time.sleep", waits.append)
    open_experiment(address(tmp_path), "e", None)
    assert len(waits) == 1


def test_a_store_that_another_program_creates_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = mlflow_db._initialize_tables

    def slow(engine: mlflow_db.sqlalchemy.Engine) -> None:
        monkeypatch.setattr(mlflow_db, "_initialize_tables", create)
        MlflowClient(address(tmp_path)).create_experiment("another program's")
        create(engine)

    monkeypatch.setattr(mlflow_db, "_initialize_tables", slow)
    client, _ = open_experiment(address(tmp_path), "e", None)
    assert client.get_experiment_by_name("another program's")
    works(tmp_path)


def test_an_incomplete_store_with_a_row_is_not_changed(tmp_path: Path) -> None:
    file = half_created(tmp_path, 60)
    with sqlite3.connect(file) as database:
        database.execute("INSERT INTO experiments (experiment_id, name) VALUES (1, 'mine')")
    database.close()
    before = rows_of(file)
    with pytest.raises(UserError) as caught:
        open_experiment(address(tmp_path), "e", None)
    assert not isinstance(caught.value, UnfinishedError)
    assert rows_of(file) == before


def test_a_complete_store_of_an_older_schema_is_not_changed(tmp_path: Path) -> None:
    open_experiment(address(tmp_path), "e", None)
    file = tmp_path / "mlflow.db"
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = 'acf3f17fdcc7'")
    database.close()
    os.utime(file, (time.time() - 60,) * 2)
    before = rows_of(file)
    with pytest.raises(UserError, match="another MLflow version"):
        open_experiment(address(tmp_path), "e", None)
    assert rows_of(file) == before


@pytest.mark.slow
@pytest.mark.parametrize("moment", [300, 1690, 1760, 1900])
def test_a_killed_command_can_be_repeated(tmp_path: Path, moment: int) -> None:
    """It dies while the store is created, when the run starts, and at its end."""
    args = ["model=tfidf", "data=demo", "data.reviews=120", "output_dir=out", "seed=0"]
    code = f"import sys, killed; killed.arm({moment}, statements=True); "
    code += "from kinopoisk_ft.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": str(HELPERS)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-c", code, *args]
    first = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert first.returncode in (0, 9), first.stderr
    command[1:3] = ["-m", "kinopoisk_ft"]
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert report(["--uri", address(tmp_path), "--output", str(tmp_path / "report")]) == 0
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        statuses = [status for (status,) in database.execute("SELECT status FROM runs")]
    database.close()
    assert "RUNNING" not in statuses
    assert "FINISHED" in statuses
    assert not [*tmp_path.rglob("*.part")]


def test_databases_that_are_not_stores_are_refused_and_not_changed(tmp_path: Path) -> None:
    for version, message in ((None, "not an MLflow store"), ("abc", "another MLflow version")):
        file = tmp_path / f"{version}.db"
        with sqlite3.connect(file) as database:
            database.execute("CREATE TABLE alembic_version (version_num TEXT)")
            if version:
                database.execute("CREATE TABLE experiments (x)")
                database.execute("CREATE TABLE runs (x)")
                database.execute("INSERT INTO alembic_version VALUES (?)", (version,))
        before = file.read_bytes()
        with pytest.raises(UserError, match=message):
            open_experiment(f"sqlite:///{file}", "e", None)
        assert file.read_bytes() == before


@pytest.mark.slow
def test_two_processes_create_one_store(tmp_path: Path) -> None:
    code = "import sys; from kinopoisk_ft.tracking.store import open_experiment as o; "
    code += "print(o(sys.argv[1], 'e', None)[1])"
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1] != ""


def test_experiments_are_marked_as_training(tmp_path: Path) -> None:
    client, made = open_experiment(address(tmp_path), "new", None)
    old = client.create_experiment("old", tags={"mlflow.experimentKind": "genai_inferred"})
    mine = client.create_experiment("mine", tags={"mlflow.experimentKind": "genai_development"})
    for name in ("old", "mine"):
        open_experiment(address(tmp_path), name, None)
    tags = {one: client.get_experiment(one).tags for one in (made, old, mine)}
    kinds = [tags[one]["mlflow.experimentKind"] for one in tags]
    assert kinds == ["custom_model_development", "custom_model_development", "genai_development"]
    for one in tags.values():
        assert one["mlflow.experiment.primaryMetric.name"] == "test/f1_weighted"
        assert one["mlflow.experiment.primaryMetric.greaterIsBetter"] == "True"


@pytest.mark.usefixtures("no_locks")
def test_sqlite_needs_locks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"to do: SQLite needs a file system with locks: .*server"):
        open_experiment(address(tmp_path), "e", None)


@pytest.mark.parametrize("name", ["my%20project", "мои фильмы", "a?b", "100%"])
def test_a_folder_may_have_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    uri = absolute_uri(None)
    client, experiment = open_experiment(uri, "e", None)
    run_id = client.create_run(experiment).info.run_id
    # MLflow also creates an empty folder whose name is encoded as in the URI.
    assert [file.parent.name for file in tmp_path.rglob("mlflow.db")] == [name]
    assert get_database_file(uri) == Path("mlflow.db").absolute()
    assert absolute_uri(uri) == uri
    assert open_store(uri).get_run(run_id).info.run_id == run_id


def test_the_options_of_a_uri_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'a.db'}?timeout=60"
    assert absolute_uri("sqlite:///a.db?timeout=60") == absolute_uri(uri) == uri


@pytest.mark.parametrize("port", ["9", "port"])
def test_an_error_does_not_show_the_password(port: str) -> None:
    with pytest.raises(UserError, match=r"cannot be opened: .*me:\*\*\*@127") as caught:
        open_experiment(f"http://me:secret@127.0.0.1:{port}", "name", None)
    assert "secret" not in str(caught.value)


def test_an_experiment_is_found_without_creating_anything(tmp_path: Path) -> None:
    uri = address(tmp_path)
    assert find_experiment(uri, "e") is None
    assert [*tmp_path.iterdir()] == []
    _, experiment = open_experiment(uri, "e", None)
    found = find_experiment(uri, "e")
    assert found is not None
    assert found[1] == experiment
    assert find_experiment(uri, "another") is None
    (tmp_path / "other.db").write_text("This is no database.")
    with pytest.raises(UserError, match=r"cannot be read(.|\n)*tracking\.uri=.* --uri"):
        find_experiment(f"sqlite:///{tmp_path / 'other.db'}", "e")
    (tmp_path / "new").mkdir()
    half_created(tmp_path / "new", 8)
    assert find_experiment(address(tmp_path / "new"), "e") is None
