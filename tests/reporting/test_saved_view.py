"""Test the saved view of the MLflow UI, and the contents of a sweep's parent run."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
from report_rows import trained
from report_store import Store, filled_store, report

from kinopoisk_ft.reporting.document import build
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.runs import Collected
from kinopoisk_ft.reporting.saved_view import VIEW, describe_sweep, view_columns


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return filled_store(tmp_path_factory.getbasetemp())


def test_the_parent_has_the_scores_of_the_best_run(store: Store, tmp_path: Path) -> None:
    client = store.client
    for _ in range(2):
        report(store, tmp_path, f"parent={store.sweep}")
    parent = client.get_run(store.sweep)
    experiment = client.get_experiment(parent.info.experiment_id)
    children = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{store.sweep}'"
    )
    best = max(run.data.metrics["test_f1_weighted"] for run in children)
    assert parent.data.metrics["test/f1_weighted"] == best
    assert parent.data.metrics["time/train_seconds"] > 0
    # A second report of the same runs records nothing.
    assert len(client.get_metric_history(store.sweep, "test/f1_weighted")) == 1
    assert parent.data.tags["best_run"].rpartition(" ")[2] in {run.info.run_id for run in children}
    note = parent.data.tags["mlflow.note.content"]
    assert "weighted F1" in note
    assert "`report/comparison.html`" in note


def test_runs_without_a_common_score_have_no_best_run() -> None:
    """Different test reviews are an example, and so are trials of a search."""
    for changes, logged in (({"split": "b"}, 0), ({"searched": "trial"}, 0), ({}, 1)):
        runs = [trained(**changes), trained(seed=1, searched=changes.get("searched", ""))]
        document = build(Collected(experiment="e", runs=runs), {}, "parent", Locale("en"))
        client = Mock()
        client.get_run.return_value.data.metrics = {}
        client.get_run.return_value.info.start_time = 0
        describe_sweep(client, "parent", document, Locale("en"), has_files=False)
        assert client.log_batch.call_count == logged


def test_the_view_sorts_runs_and_shows_charts(store: Store, tmp_path: Path) -> None:
    report(store, tmp_path, f"parent={store.sweep}")
    home = store.client.get_run(store.sweep).info.experiment_id
    experiment = store.client.get_experiment(home)
    state = json.loads(json.loads(experiment.tags[VIEW])["state"])
    assert state["selectedColumns"] == view_columns()
    assert state["orderByKey"] == view_columns()[1] == "metrics.`test/f1_weighted`"
    charts = {chart["uuid"]: chart for chart in state["compareRunCharts"]}
    assert [chart["type"] for chart in charts.values()] == ["SCATTER", *["BAR"] * 2, *["LINE"] * 3]
    shown = [one["name"] for one in state["compareRunSections"] if one["display"]]
    assert shown == ["Comparison"]
    note = experiment.tags["mlflow.note.content"]
    assert f"#/experiments/{home}/runs?viewStateShareKey=kinopoisk_ft" in note

    # A description that the user wrote is kept.
    store.client.set_experiment_tag(home, "mlflow.note.content", "mine")
    report(store, tmp_path, f"parent={store.sweep}")
    assert store.client.get_experiment(home).tags["mlflow.note.content"] == "mine"
