"""Test real stores that are deleted, locked or unreachable: each event arrives once, in order."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracked import Server, hurry, is_sent, record, tracker, wait_for

from kinopoisk_ft.commands import sync
from kinopoisk_ft.tracking import mlflow as mlflow_module
from kinopoisk_ft.tracking.store import open_experiment


def logged(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run_id, key)]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real store, shared because its tables take seconds to create."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.mark.slow
def test_a_resumed_run_repeats_nothing(uri: str, tmp_path: Path) -> None:
    first = tracker(uri)
    run_id = first.start("one", {"a": 1}, {}, folder=tmp_path)
    first.metrics({"loss": 0.5}, 1)
    first.tags({"error": "power cut"})
    first.finish("KILLED")
    second = tracker(uri)
    again = second.start("one", {"a": 2, "b": 3}, {}, resume=run_id, folder=tmp_path)
    assert again == run_id
    for step in (1, 2):
        second.metrics({"loss": 0.5 / step}, step)
    second.finish("FINISHED")
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1", "b": "3"}
    assert "error" not in run.data.tags
    assert logged(client, run_id, "loss") == [(1, 0.5), (2, 0.25)]
    third = tracker(uri)
    assert third.start("one", {}, {}, resume="0" * 32, folder=tmp_path) != run_id
    third.finish("FINISHED")


def test_a_run_that_was_deleted_is_created_again(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = tracker(uri)
    run_id = record(first, tmp_path, steps=3)
    first.finish("KILLED")
    client = MlflowClient(uri)
    client.delete_run(run_id)
    second = tracker(uri)
    again = second.start("one", {}, {}, resume=run_id, folder=tmp_path)
    second.metrics({"loss": 9.0}, 3)
    second.finish("FINISHED")
    assert again != run_id
    assert f"run {run_id} is deleted" in caplog.text
    assert logged(client, again, "loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3), (3, 9.0)]


def test_training_continues_while_the_database_is_locked(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(mlflow_module, "END", {"FINISHED": 0.05})
    run = tracker(uri, experiment="locked")
    run_id = run.start("one", {}, {}, folder=tmp_path)
    wait_for(lambda: is_sent(run))
    with sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        for step in range(5):
            run.metrics({"loss": float(step)}, step)
        run.finish("FINISHED")
        assert "6 events of this run are not in the MLflow store yet" in caplog.text
        database.execute("ROLLBACK")
    database.close()
    run._delivery._thread.join()
    assert sync.main([str(tmp_path)]) == 0
    client = MlflowClient(uri)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert logged(client, run_id, "loss") == [(step, float(step)) for step in range(5)]


@pytest.mark.slow
def test_a_database_that_is_locked_at_the_start(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite gives up after five seconds."""
    open_experiment(uri, "late", None)
    with sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        run = tracker(uri, experiment="late")
        assert run.find({"any": "tag"}, tmp_path) is None
        run_id = record(run, tmp_path)
        database.execute("ROLLBACK")
    database.close()
    assert run_id.startswith("offline-")
    assert "without the MLflow store" in caplog.text
    caplog.set_level(logging.DEBUG)
    run.finish("FINISHED")
    made = run._replay.run_id
    assert f"the id of this run in the MLflow store is {made}" in caplog.text
    assert len(logged(MlflowClient(uri), made, "loss")) == 30


@pytest.mark.slow
def test_a_server_that_fails_in_every_way(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    hurry(monkeypatch)
    monkeypatch.setattr(mlflow_module, "END", {"FINISHED": 0.05})
    server = Server(uri, tmp_path / "artifacts")
    try:
        server.mode = "500"
        run = tracker(server.url, experiment="server")
        assert run.find({"any": "tag"}, tmp_path) is None
        run_id = run.start("one", {"a": 1}, {}, folder=tmp_path / "out")
        assert run_id.startswith("offline-")
        run.tags({"result": f'{{"run_id": "{run_id}"}}'})
        run.metrics({"loss": 0.0}, 0)
        server.mode = "works"
        wait_for(lambda: is_sent(run))
        assert "answers again" in caplog.text
        server.mode = "lost"
        run.metrics({"loss": 1.0}, 1)
        made = run._replay.run_id
        client = MlflowClient(uri)
        wait_for(lambda: len(logged(client, made, "loss")) == 2)
        server.mode = "hangs"
        run.metrics({"loss": 2.0}, 2)
        run.finish("FINISHED")
        assert "events of this run are not in the MLflow store yet" in caplog.text
        server.mode = "works"
        run._delivery._thread.join()
        assert sync.main([str(tmp_path)]) == 0
        assert logged(client, made, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
        found = client.get_run(made)
        assert found.info.status == "FINISHED"
        assert found.data.tags["result"] == f'{{"run_id": "{made}"}}'
    finally:
        server.stop()
    gone = tracker(server.url)
    assert gone.start("two", {}, {}, folder=tmp_path / "two").startswith("offline-")
    gone.finish("FINISHED")
    assert sync.main([str(tmp_path / "two")]) == 1


def test_a_run_stays_in_an_experiment_that_was_renamed(uri: str, tmp_path: Path) -> None:
    first = tracker(uri, experiment="old name")
    run_id = first.start("one", {}, {}, folder=tmp_path)
    first.finish("KILLED")
    client = MlflowClient(uri)
    client.rename_experiment(client.get_run(run_id).info.experiment_id, "new name")
    second = tracker(uri, experiment="old name")
    assert second.start("one", {}, {}, resume=run_id, folder=tmp_path) == run_id
    second.finish("FINISHED")
    assert client.get_run(run_id).info.status == "FINISHED"
