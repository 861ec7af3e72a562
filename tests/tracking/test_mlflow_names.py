"""Test the names in MLflow: grouped, reversible, and read from stores of earlier versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from places import SAVED
from syncing import _here as _here
from syncing import client as client
from syncing import place as place
from syncing import runs_of
from tracked import offline

from kinopoisk_ft.commands import report, sync
from kinopoisk_ft.reporting.columns import COLUMNS, MAJORITY
from kinopoisk_ft.tracking.event_log import find_logs
from kinopoisk_ft.tracking.mlflow_names import (
    PREFIXED,
    flat_metrics,
    from_mlflow,
    has_flat_names,
    readable_params,
    to_mlflow,
)

# A sweep with TF-IDF and a BERT, recorded by a version that used flat names in MLflow, too.
FLAT = SAVED / "sweep_with_flat_names"


@pytest.mark.parametrize(
    ("flat", "grouped"),
    [
        ("test_f1_weighted", "test/f1_weighted"),
        ("val_seconds", "time/val_seconds"),
        ("train_loss", "train/loss"),
        ("train_reviews", "data/train_reviews"),
        ("lr", "train/lr"),
        ("leakage_films_share", "leakage/films_share"),
        ("peak_memory_mb", "system/peak_memory_mb"),
        ("my_own_score", "my_own_score"),
        ("test", "test"),
        ("system/cpu_utilization_percentage", "system/cpu_utilization_percentage"),
    ],
)
def test_metrics_are_grouped(flat: str, grouped: str) -> None:
    assert to_mlflow(flat) == grouped
    assert from_mlflow(grouped) == flat


# `train_lr` is the only kind of name that cannot be recovered: its group has a metric `lr`.
WORDS = st.sampled_from([*PREFIXED, "seconds", "share", "x", "time", "data", "model"])


@given(st.lists(WORDS, min_size=1, max_size=4).map("_".join))
def test_flat_names_are_recovered(name: str) -> None:
    assert from_mlflow(to_mlflow(name)) == name
    assert from_mlflow(name) == name


def test_all_columns_of_the_report_have_a_group() -> None:
    metrics = {column.metric or name for name, column in COLUMNS.items()} | {*MAJORITY.values()}
    assert {name for name in metrics if "/" not in to_mlflow(name)} == set()


def test_params_are_readable() -> None:
    params = {
        "model._target_": "kinopoisk_ft.models.tfidf.Tfidf",
        "trainer.optimizer._target_": "torch.optim.AdamW",
        "trainer.optimizer._partial_": "True",
        "trainer.optimizer._convert_": "all",
        "trainer.lr": "0.1",
    }
    readable = {"model": "Tfidf", "trainer.optimizer": "torch.optim.AdamW", "trainer.lr": "0.1"}
    assert readable_params(params) == readable
    assert readable_params(readable) == readable


def test_a_log_with_flat_names_gives_the_same_report(
    client: MlflowClient, place: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(FLAT, tmp_path / "sweep"))
    assert sync.main([str(folder), "--experiment", "flat"]) == 0
    runs = {run.data.tags.get("model"): run for run in runs_of(client, "flat")}
    recorded = {}
    for event in find_logs(folder / "1")[0].events:
        recorded |= event["values"] if event["verb"] == "metrics" else {}
    found = runs["bert_scratch"].data
    assert flat_metrics(found.metrics) == pytest.approx(recorded)
    assert all("/" in key for key in found.metrics)
    assert found.params["trainer.schedule"] == "linear"
    assert not any(key.endswith("_") for key in found.params)

    arguments = ["--experiment", "flat", "--output", str(tmp_path / "report")]
    assert report.main([*arguments, "--no-log"]) == 0
    names = [name for name in pd.read_csv(FLAT / "comparison.csv") if name in COLUMNS]
    now, before = (
        pd.read_csv(file).fillna({"model": "majority class"}).set_index("model")[names].sort_index()
        for file in (tmp_path / "report" / "comparison.csv", FLAT / "comparison.csv")
    )
    pd.testing.assert_frame_equal(now, before)
    assert len(names) > 20


def test_a_run_that_was_sent_with_flat_names_keeps_them(
    client: MlflowClient, place: Path, tmp_path: Path
) -> None:
    run = offline(experiment="half")
    run.start("one", {"model": {"_target_": "a.B"}}, {}, folder=tmp_path)
    for step in (1, 2):
        run.metrics({"train_loss": 1 / step}, step)
    run.finish("FINISHED")
    (log,) = find_logs(tmp_path)
    # An earlier version has sent the first metric.
    experiment = client.create_experiment("half", (tmp_path / "artifacts").as_uri())
    made = client.create_run(experiment, tags={"kinopoisk_ft.events": log.id})
    client.log_param(made.info.run_id, "model._target_", "a.B")
    client.log_metric(made.info.run_id, "train_loss", 1.0, log.events[2]["time"], 1)
    state = {"uri": f"sqlite:///{place / 'mlflow.db'}", "run_id": made.info.run_id, "seq": 2}
    log.state_file.write_text(json.dumps(state | {"refused": {}}))
    assert sync.main([str(tmp_path)]) == 0
    (found,) = runs_of(client, "half")
    assert (found.data.metrics, found.data.params) == (
        {"train_loss": 0.5},
        {"model._target_": "a.B"},
    )
    points = client.get_metric_history(found.info.run_id, "train_loss")
    assert [point.step for point in points] == [1, 2]


@pytest.mark.parametrize("name", ["train_seconds", "test_loss", "temperature", "own"])
def test_a_run_with_groups_keeps_them_after_a_new_connection(name: str) -> None:
    key = to_mlflow(name)
    assert to_mlflow(key) == key
    assert has_flat_names({key: 1.0}, {}) is False
    assert has_flat_names({name: 1.0}, {}) is (key != name)
