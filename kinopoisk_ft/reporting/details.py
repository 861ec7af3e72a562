"""What a run left beside its metrics: its curves, its data's description, its environment."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.reporting.pictures import CURVES, HistoryRow
from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.statistics.predictions import Predictions

MOST_POINTS = 200  # of a curve: more are not told apart on a page


@dataclass(frozen=True, kw_only=True)
class Details:
    """Empty where a run did not record them.

    `history` has rows of `step` and one of `CURVES`; `data` and `environment` are the run's
    data.json and environment.json.
    """

    history: list[HistoryRow] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Material:
    """What a page shows beside its tables, both by run id."""

    predictions: Mapping[str, Predictions]
    details: Mapping[str, Details]


def load_details(client: MlflowClient, runs: Iterable[TrainedRun]) -> dict[str, Details]:
    """Return the details by run id. Raises UserError where a file is listed and unreadable."""
    found = {}
    for run in runs:
        files = {file.path for file in client.list_artifacts(run.run_id)}
        read = {
            name: _json(client, run.run_id, f"{name}.json") if f"{name}.json" in files else {}
            for name in ("data", "environment")
        }
        found[run.run_id] = Details(history=_history(client, run), **read)
    return found


def _history(client: MlflowClient, run: TrainedRun) -> list[HistoryRow]:
    rows: list[HistoryRow] = []
    for key in CURVES:
        if key in run.metrics:
            points = client.get_metric_history(run.run_id, key)
            stride = -(-len(points) // MOST_POINTS)
            rows += [{"step": point.step, key: point.value} for point in points[::stride]]
    return rows


def _json(client: MlflowClient, run_id: str, name: str) -> dict[str, Any]:
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(run_id, name, folder)
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        return value
    except (MlflowException, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{name} cannot be read: {str(error).splitlines()[0]}",
            where=f"run {run_id}",
            fix="train this run again, or delete it from the store",
        ) from error
