"""Test the published comparison: its runs, and the report from them."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from places import ROOT
from sklearn.metrics import accuracy_score, f1_score

from kinopoisk_ft.commands import sync
from kinopoisk_ft.reporting.runs import collect

RUNS = ROOT / "docs/comparison/runs"
KEPT = sorted(path.parent for path in RUNS.glob("*/*/result.json"))


@pytest.mark.parametrize("run", KEPT, ids=lambda run: f"{run.parent.name}/{run.name}")
def test_predictions_give_the_published_scores(run: Path) -> None:
    result = json.loads((run / "result.json").read_text("utf-8"))
    table = pd.read_parquet(run / "predictions.parquet")
    for score, average in (("f1_weighted", "weighted"), ("f1_macro", "macro")):
        found = f1_score(table["label"], table["predicted"], average=average)
        assert found == pytest.approx(result[score], abs=1e-6)
    assert accuracy_score(table["label"], table["predicted"]) == pytest.approx(result["accuracy"])


def test_neither_texts_nor_authors_are_published() -> None:
    columns = {name for run in KEPT for name in pd.read_parquet(run / "predictions.parquet")}
    assert columns == {"row", "label", "predicted", "p_Bad", "p_Good", "characters", "truncated",
                       "film", "grade10", "group", "film_in_train"}  # fmt: skip


@pytest.mark.parametrize("run", KEPT, ids=lambda run: f"{run.parent.name}/{run.name}")
def test_no_folder_of_a_machine_is_published(run: Path) -> None:
    (log,) = (run / "tracking").glob("*.jsonl")
    for file in (run / "config.yaml", log):
        assert not re.findall(r"""[ ="']/\w+/[^ "',]*""", file.read_text("utf-8"))


def test_the_runs_of_a_setting_have_the_same_rows_and_commit() -> None:
    for setting in sorted(RUNS.iterdir()):
        runs = [run for run in KEPT if run.parent == setting]
        described = [json.loads((run / "data.json").read_text("utf-8")) for run in runs]
        assert len({found["split_digest"] for found in described}) == 1
        environments = [json.loads((run / "environment.json").read_text("utf-8")) for run in runs]
        assert len({found["commit"] for found in environments}) == 1


def test_the_readme_shows_the_table_of_these_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    root = RUNS.parents[2]
    monkeypatch.chdir(root)
    tool = runpy.run_path(str(root / "tools/comparison.py"))
    assert tool["table"](tool["TITLES"]) in (root / "README.md").read_text("utf-8")
    comparison = (root / "docs/comparison/README.md").read_text("utf-8")
    assert tool["table"](tool["READ"], tool["READERS"]) in comparison


@pytest.mark.slow
def test_the_committed_event_logs_give_a_store_for_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    shutil.copytree(RUNS, tmp_path / "runs")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert sync.main(["runs", "--uri", store]) == 0
    for setting in ("film", "stripped", "random"):
        found = collect(MlflowClient(store), f"reviews-{setting}")
        assert len(found.runs) == sum(run.parent.name.startswith(setting) for run in KEPT)
        assert not found.failed
