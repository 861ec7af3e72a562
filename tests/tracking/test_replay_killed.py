"""Test that the store has each event of the log once, after a kill at any moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from killed import dies
from mlflow import MlflowClient
from quick import quick
from tracked import hurry, record, tracker

from kinopoisk_ft.commands import sync
from kinopoisk_ft.tracking.event_log import Event, find_logs
from kinopoisk_ft.tracking.mlflow_names import from_mlflow
from kinopoisk_ft.tracking.store import open_experiment

Values = list[tuple[str, int, int, float]]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    open_experiment(uri, "x", None)
    return uri


def recorded(events: list[Event]) -> Values:
    return sorted(
        (key, event["step"], event["time"], value)
        for event in events
        if event["verb"] == "metrics"
        for key, value in event["values"].items()
    )


def stored(client: MlflowClient, run: Any) -> Values:
    histories = (client.get_metric_history(run.info.run_id, key) for key in run.data.metrics)
    return sorted(
        (from_mlflow(m.key), m.step, m.timestamp, m.value) for history in histories for m in history
    )


MOMENTS = [12, 38, 49, 66, 27, 57, *range(5, 90, 5)]


@pytest.mark.parametrize("moment", quick(MOMENTS, 4))
def test_a_killed_run_is_completed_by_sync(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The run dies before an SQL statement or a rename of a file, and so does the first `sync`."""
    hurry(monkeypatch)
    folder = tmp_path / "run"

    def run() -> None:
        live = tracker(uri)
        record(live, folder, steps=5)
        live.finish("FINISHED")

    assert dies(run, moment, statements=True) or moment > 40
    dies(lambda: sync.main([str(folder)]), moment // 2, statements=True)
    assert sync.main([str(folder)]) == 0
    (log,) = find_logs(folder)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("x")
    (found,) = client.search_runs([experiment.experiment_id])
    events = list(log.events)
    assert stored(client, found) == recorded(events)
    assert found.info.status == events[-1]["status"]
    assert found.data.tags.get("result") == log.tags.get("result")
    has_params = any(event["verb"] == "params" for event in events)
    assert found.data.params.get("a") == ("1" if has_params else None)
    artifacts = {file.path for file in client.list_artifacts(found.info.run_id)}
    has_artifact = any(event["verb"] == "artifact" for event in events)
    assert ("config.yaml" in artifacts) == has_artifact
