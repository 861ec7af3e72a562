"""Test that the files of runs are read from the store."""

from __future__ import annotations

import json
from pathlib import Path

from report_store import Store

from kinopoisk_ft.reporting.run_files import load_run_files
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
