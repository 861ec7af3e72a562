"""Provide reviews, a tiny model and a store for the tests of sweeps."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import tiny
from mlflow import MlflowClient

from kinopoisk_ft.commands import report
from kinopoisk_ft.reporting.runs import collect

DATA = ["data=file", "data.path=reviews.jsonl", "data.text_column=text", "data.label_column=mark"]
SMALL = [
    "model=bert_scratch", "model.hidden_size=16", "model.num_layers=2", "model.vocab_size=120",
    "model.max_positions=64", "data.max_length=32", "trainer.precision=fp32", "trainer.device=cpu",
    "trainer.log_every=1",
]  # fmt: skip
LONG = ["trainer.budget=steps:300", "trainer.batch_size=8", "trainer.checkpoint_every=5"]


def write_reviews(folder: Path, count: int = 80) -> None:
    """Write labelled reviews to reviews.jsonl in a folder."""
    texts, labels = tiny.reviews(count)
    table = pd.DataFrame({"text": [f"{t} {i}" for i, t in enumerate(texts)], "mark": labels})
    table.to_json(folder / "reviews.jsonl", orient="records", lines=True, force_ascii=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with reviews and one store, shared because its tables take seconds to create."""
    folder = tmp_path_factory.mktemp("sweeps")
    write_reviews(folder)
    return folder


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("KINOPOISK_FT_CACHE", str(place / "cache"))
    # MLflow sets this variable when it logs a model. Setting it here restores it after the test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    # The summary takes seconds; tests/sweeps/test_forecast.py tests the real one.
    monkeypatch.setattr(report, "summarize_sweep", lambda *_: "summary")


def newest_parent(client: MlflowClient, experiment: str) -> tuple[str, str]:
    """Return the id and status of the last sweep of an experiment."""
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], "tags.`kinopoisk_ft.kind` = 'sweep'")
    newest = max(runs, key=lambda run: run.info.start_time)
    return newest.info.run_id, newest.info.status


def environment(place: Path) -> dict[str, str]:
    """Return this process's variables without limits on threads, and with a separate cache."""
    kept = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    return {**kept, "KINOPOISK_FT_CACHE": str(place / "cache")}


def statuses(place: Path) -> list[str]:
    """Return the status of the newest sweep's parent, followed by those of its runs."""
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    parent, status = newest_parent(client, "kinopoisk_ft")
    experiment = client.get_run(parent).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return [status, *(run.info.status for run in runs)]


def assert_whole_runs(place: Path, resumed: list[bool]) -> None:
    """Check that the runs recorded each step once, and which of them were stopped and resumed."""
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    parent, status = newest_parent(client, "kinopoisk_ft")
    assert status == "FINISHED"
    runs = collect(client, "kinopoisk_ft", parent).runs
    for run in runs:
        steps = [m.step for m in client.get_metric_history(run.run_id, "train/loss")]
        assert sorted(steps) == list(range(1, 301))
    logs = [(place / f"out/{number}/run.log").read_text() for number in range(len(runs))]
    assert ["resuming the unfinished run" in log for log in logs] == resumed
