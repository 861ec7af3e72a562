"""The report in MLflow: its files and a note on the sweep, and a view of the experiment's runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.reporting.document import Document
from kinopoisk_ft.reporting.formats import as_note
from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.reporting.words import Words

FOLDER = "report"
# A view that the UI saves is a tag of the experiment. Without one it shows no metric, and lists
# them by the alphabet.
VIEW = "mlflow.sharedViewState.kinopoisk_ft"
COLUMNS = (
    "tags.`seed`", "metrics.`test_f1_weighted`", "metrics.`test_accuracy`",
    "metrics.`test_f1_macro`", "metrics.`train_seconds`", "metrics.`eval_seconds`",
    "metrics.`trainable_parameters`", "metrics.`total_parameters`", "metrics.`tokens_per_second`",
    "metrics.`peak_memory_mb`", "metrics.`characters_seen_share`",
    "metrics.`majority_f1_weighted`",
)  # fmt: skip


def parent_of(runs: Iterable[TrainedRun]) -> str | None:
    """Return the one sweep that all runs are of, None where there is no such."""
    parents = {run.parent for run in runs}
    return parents.pop() or None if len(parents) == 1 else None


def log_report(
    client: MlflowClient, parent: str, document: Document, paths: Sequence[Path], words: Words
) -> None:
    """Keep the files in the folder `FOLDER` of the parent run, and tell its UI the same."""
    try:
        for path in paths:
            client.log_artifact(parent, str(path), FOLDER)
        client.set_tag(parent, MLFLOW_RUN_NOTE, as_note(document, words, MAX_TAG_VAL_LENGTH))
        run = client.get_run(parent).info
        client.set_experiment_tag(run.experiment_id, VIEW, _view(words("view"), run.start_time))
    except (MlflowException, OSError) as error:
        raise UserError(
            f"the report is written but cannot be logged: {str(error).splitlines()[0]}",
            where=f"run {parent}",
            fix="give --no-log to leave the store as it is",
        ) from error


def _view(name: str, created: int) -> str:
    """Return a saved view: MLflow 3 lists it by its name, in the menu Views."""
    state = {"selectedColumns": COLUMNS, "columnOrder": COLUMNS}
    envelope = {"name": name, "createdAt": created, "updatedAt": created}
    return json.dumps(envelope | {"state": json.dumps(state)})
