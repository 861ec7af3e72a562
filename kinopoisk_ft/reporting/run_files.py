"""Read the files that runs logged to MLflow."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.reporting.plots.run_plots import CURVES, HistoryRow
from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.statistics.predictions import PARQUET_ERRORS, Predictions
from kinopoisk_ft.tracking.mlflow_names import to_mlflow

PREDICTIONS = "predictions.parquet"
# Learning curves on the page have no room for more points than this.
MOST_POINTS = 200

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Details:
    """The records of one run for the HTML page. Fields that were not recorded are empty.

    Args:
        history: points of the learning curves. Each has `step` (optimizer steps) and one of
            `train_loss`, `val_loss` and `val_f1_weighted`.
        data: content of data.json.
        environment: content of environment.json.
    """

    history: list[HistoryRow] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFiles:
    """The files of runs.

    Args:
        predictions, details: {run id: content}.
        shaded: {(run id, row number of a review): HTML}. The HTML contains the words of the
            review, shaded by their effect on the prediction.
        folds: {run id of a pooled run: {row number of a review: run id of one fold}}. The fold is
            the one with the review in its test split; see `folds.pool_folds`.
    """

    predictions: Mapping[str, Predictions]
    details: Mapping[str, Details]
    shaded: Mapping[tuple[str, int], str] = field(default_factory=dict)
    folds: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


def load_run_files(client: MlflowClient, runs: Iterable[TrainedRun]) -> RunFiles:
    """Download and read the files of runs; raise UserError if a file is unreadable."""
    predictions, details = {}, {}
    for run in runs:
        # One request lists the files, so that absent files are skipped instead of requested.
        files = {file.path for file in client.list_artifacts(run.run_id)}
        if PREDICTIONS in files:
            table = _read(client, run, PREDICTIONS, pd.read_parquet)
            predictions[run.run_id] = Predictions.of(table, f"{PREDICTIONS} of {_describe(run)}")
        described = {
            name: _read(client, run, f"{name}.json", _read_json)
            for name in ("data", "environment")
            if f"{name}.json" in files
        }
        details[run.run_id] = Details(history=_history(client, run), **described)
        counts = described.get("data", {}).get("counts")
        # Earlier versions recorded this number only in data.json.
        if isinstance(counts, dict) and isinstance(counts.get("train"), int):
            run.metrics.setdefault("train_reviews", counts["train"])
    return RunFiles(predictions, details)


def _history(client: MlflowClient, run: TrainedRun) -> list[HistoryRow]:
    rows: list[HistoryRow] = []
    for key in CURVES:
        # Each history is a request to the store, so ask only for metrics that the run recorded.
        if key in run.metrics:
            # Earlier versions recorded metrics under their flat names.
            points = client.get_metric_history(run.run_id, to_mlflow(key))
            points = points or client.get_metric_history(run.run_id, key)
            count = min(len(points), MOST_POINTS)
            # Evenly spaced indices that include the first and the last point.
            chosen = np.linspace(0, len(points) - 1, count).round().astype(int)
            rows += [{"step": points[i].step, key: points[i].value} for i in chosen]
    return rows


def _read(client: MlflowClient, run: TrainedRun, name: str, read: Callable[[Path], T]) -> T:
    try:
        with tempfile.TemporaryDirectory() as folder:
            return read(Path(client.download_artifacts(run.run_id, name, folder)))
    except (MlflowException, RecursionError, *PARQUET_ERRORS) as error:
        # RecursionError comes from deeply nested JSON.
        raise UserError(
            f"{name} cannot be read: {str(error).splitlines()[0]}",
            where=_describe(run),
            fix="repeat this run, or delete it from the store",
        ) from error


def _describe(run: TrainedRun) -> str:
    return f"run {run.run_id} ({run.approach}, seed {run.seed or '-'})"


def _read_json(file: Path) -> dict[str, Any]:
    value = json.loads(file.read_text(encoding="utf-8"))
    # Valid JSON may also be a list or a number.
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value
