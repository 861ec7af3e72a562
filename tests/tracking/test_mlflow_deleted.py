"""Test experiments and runs deleted in MLflow: no event is lost, and the error names the fix."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracked import hurry, is_sent, record, tracker, wait_for

from kinopoisk_ft.commands import sync
from kinopoisk_ft.commands.report import main as report
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking.store import open_experiment


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('a store') / 'mlflow.db'}"


def deleted_experiment(uri: str, name: str) -> str:
    client, experiment = open_experiment(uri, name, None)
    client.delete_experiment(experiment)
    return experiment


def test_a_deleted_experiment_says_how_to_restore_it(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = deleted_experiment(uri, "gone")
    command = f"mlflow experiments restore --experiment-id {experiment}"
    run = tracker(uri, "gone")
    with pytest.raises(UserError, match="'gone' has been deleted") as caught:
        run.start("one", {}, {}, folder=tmp_path)
    assert command in str(caught.value.fix)
    assert "tracking.experiment=" in str(caught.value.fix)
    assert not [*tmp_path.rglob("*.jsonl")]
    with pytest.raises(UserError, match="'gone' has been deleted"):
        run.find({"any": "tag"}, tmp_path)
    assert report(["--uri", uri, "--experiment", "gone"]) == 1
    assert command in capsys.readouterr().err


@pytest.mark.slow
def test_the_named_command_restores_the_experiment(uri: str, tmp_path: Path) -> None:
    deleted_experiment(uri, "comes back")
    with pytest.raises(UserError) as caught:
        open_experiment(uri, "comes back", None)
    found = re.search(r"restore it: (.*?); or", str(caught.value.fix))
    assert found
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", found[1]], check=True, env=environment, cwd=tmp_path)
    open_experiment(uri, "comes back", None)


def test_a_deleted_parent_is_named(uri: str, tmp_path: Path) -> None:
    client, experiment = open_experiment(uri, "sweeps", None)
    parent = client.create_run(experiment).info.run_id
    client.delete_run(parent)
    with pytest.raises(UserError, match=f"parent run {parent} has been deleted") as caught:
        tracker(uri, "sweeps").start("one", {}, {}, parent, folder=tmp_path)
    assert f"mlflow runs restore --run-id {parent}" in str(caught.value.fix)


def test_a_run_that_is_deleted_while_it_trains_is_sent_to_a_new_one(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hurry(monkeypatch)
    run = tracker(uri, "deleted while it trains")
    run_id = record(run, tmp_path, steps=3)
    wait_for(lambda: is_sent(run))
    client = MlflowClient(uri)
    client.delete_run(run_id)
    run.metrics({"loss": 7.0}, 3)
    run.finish("FINISHED")
    assert f"run {run_id} is deleted, so all its events are sent to a new run" in caplog.text
    assert f"mlflow runs restore --run-id {run_id}" in caplog.text
    again = client.get_run(run._replay.run_id)
    assert again.info.run_id != run_id
    assert again.info.status == "FINISHED"
    losses = client.get_metric_history(again.info.run_id, "loss")
    assert [(m.step, m.value) for m in losses] == [(0, 1.0), (1, 0.5), (2, 1 / 3), (3, 7.0)]


def test_an_experiment_that_is_deleted_while_a_run_trains_loses_nothing(
    uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hurry(monkeypatch)
    run = tracker(uri, "deleted meanwhile")
    run_id = record(run, tmp_path, steps=3)
    wait_for(lambda: is_sent(run))
    client = MlflowClient(uri)
    experiment = client.get_run(run_id).info.experiment_id
    client.delete_experiment(experiment)
    run.metrics({"loss": 7.0}, 3)
    run.finish("FINISHED")
    assert "'deleted meanwhile' has been deleted" in caplog.text
    assert sync.main([str(tmp_path)]) == 1
    assert f"experiments restore --experiment-id {experiment}" in capsys.readouterr().err
    client.restore_experiment(experiment)
    assert sync.main([str(tmp_path)]) == 0
    restored = client.get_run(run_id)
    assert restored.info.status == "FINISHED"
    assert len(client.get_metric_history(run_id, "loss")) == 4
