"""The report's files as artifacts of the sweep they are about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.reporting.runs import TrainedRun

FOLDER = "report"


def parent_of(runs: Iterable[TrainedRun]) -> str | None:
    """Return the one sweep that all runs are of, None where there is no such."""
    parents = {run.parent for run in runs}
    return parents.pop() or None if len(parents) == 1 else None


def log_files(client: MlflowClient, parent: str, paths: Sequence[Path]) -> None:
    """Keep the files in the folder `FOLDER` of the parent run."""
    try:
        for path in paths:
            client.log_artifact(parent, str(path), FOLDER)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"the report is written but cannot be logged: {str(error).splitlines()[0]}",
            where=f"run {parent}",
            fix="give --no-log to leave the store as it is",
        ) from error
