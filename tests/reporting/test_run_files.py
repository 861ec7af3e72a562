"""Test that the files of runs are read from the store."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow.entities import Metric
from report_store import Store

from kinopoisk_ft.reporting.run_files import MOST_POINTS, load_run_files
from kinopoisk_ft.reporting.runs import collect


def test_the_number_of_train_reviews_of_earlier_runs_is_in_data_json(tmp_path: Path) -> None:
    store = Store(tmp_path)
    home = store.experiment("counts")
    for seed, counts in enumerate(({"train": 7}, {"train": "many"}, [])):
        run_id = store.answered(home, ("tfidf", "none", 1.0, 10, 10), seed, 2.0)
        store.client.log_text(run_id, json.dumps({"counts": counts}), "data.json")
    runs = collect(store.client, "counts").runs
    load_run_files(store.client, runs)
    assert [run.metrics.get("train_reviews") for run in runs] == [7, None, None]


def test_a_long_learning_curve_keeps_its_ends(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_id = store.answered(store.experiment("curves"), ("bert", "none", 1.0, 10, 10), 0, 2.0)
    # With 402 points, every third is shown, and the last is not among them.
    for start in (0, 201):
        points = [Metric("train_loss", step / 100, 0, step) for step in range(start, start + 201)]
        store.client.log_batch(run_id, points)
    runs = collect(store.client, "curves").runs
    history = load_run_files(store.client, runs).details[run_id].history
    steps = [point["step"] for point in history]
    assert (len(steps), steps[0], steps[-1]) == (MOST_POINTS, 0, 401)
    assert steps == sorted(set(steps))
    assert all(point["train_loss"] == point["step"] / 100 for point in history)
