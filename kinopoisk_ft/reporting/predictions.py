"""The per-review predictions that runs left in the store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.statistics.predictions import Predictions

FILE = "predictions.parquet"


def load(client: MlflowClient, runs: Iterable[TrainedRun]) -> dict[str, Predictions]:
    """Return the test predictions by run id, of the runs that kept them.

    Raises UserError where a run lists the file and it cannot be read.
    """
    found = {}
    for run in runs:
        if any(file.path == FILE for file in client.list_artifacts(run.run_id)):
            where = f"{FILE} of run {run.run_id} ({run.approach}, seed {run.seed or '-'})"
            found[run.run_id] = Predictions.of(_read(client, run.run_id, where), where)
    return found


def _read(client: MlflowClient, run_id: str, where: str) -> pd.DataFrame:
    try:
        with tempfile.TemporaryDirectory() as folder:
            return pd.read_parquet(Path(client.download_artifacts(run_id, FILE, folder)))
    except (MlflowException, OSError, pa.ArrowException) as error:
        raise UserError(
            f"the predictions cannot be read: {str(error).splitlines()[0]}",
            where=where,
            fix="train this run again, or delete it from the store",
        ) from error
