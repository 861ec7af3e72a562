"""Find the model folder of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import CARD
from kinopoisk_ft.text import hide_password

if TYPE_CHECKING:
    from mlflow import MlflowClient


def find_model_folder(name: str, uri: str | None = None) -> Path:
    """Return the model folder, which contains kinopoisk_ft.json.

    Args:
        name: a model folder, an output_dir, or a run id in the MLflow store.
        uri: URI of the MLflow store. If None, the environment variable MLFLOW_TRACKING_URI is used,
            or ./mlflow.db if the variable is not set.

    Raises:
        UserError: the folder or run does not exist, or has no model.
    """
    folder = Path(name).expanduser()
    # The methods of `Path` would raise an error for names that are longer than a file name can be.
    for candidate in (folder, folder / "model"):
        if os.path.isfile(candidate / CARD):
            return candidate
    if os.path.isdir(folder):
        raise UserError(
            f"there is no model in '{name}': neither it nor its subfolder `model` contains {CARD}",
            where=str(folder),
            fix="use the output_dir of a finished run, a model folder, or a run id",
        )
    return _download_model(name, uri)


def _download_model(run_id: str, uri: str | None) -> Path:
    import mlflow
    from mlflow.exceptions import MlflowException

    from kinopoisk_ft.tracking.store import default_uri, open_store

    uri = uri or default_uri()
    client = open_store(uri)
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise UserError(
            f"'{run_id}' is neither a folder nor a run in the store",
            where=hide_password(uri),
            fix="use a model folder or a run id from the MLflow UI, or set --uri to another store",
        ) from error
    if run.outputs and run.outputs.model_outputs:
        model_id = run.outputs.model_outputs[0].model_id
        # MLflow looks for models:/ URIs in the default store of this process.
        mlflow.set_tracking_uri(uri)
        local = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
        # MLflow saves the folder `model` of the run as an artifact of the pyfunc model.
        return local / "artifacts" / "model"
    return _find_recorded_folder(client, run_id, uri)


def _find_recorded_folder(client: MlflowClient, run_id: str, uri: str) -> Path:
    from mlflow.exceptions import MlflowException

    # With tracking.log_model=false, the store contains only the path of the model folder.
    try:
        result = json.loads(Path(client.download_artifacts(run_id, "result.json")).read_text())
        folder = Path(result["model_dir"])
        exists = (folder / CARD).is_file()
    except (MlflowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"run '{run_id}' has no model",
            where=hide_password(uri),
            fix="choose a finished training run",
        ) from error
    if not exists:
        raise UserError(
            f"the model folder of run '{run_id}' does not exist on this machine",
            where=str(folder),
            fix="copy the folder here, or train with tracking.log_model=true",
        )
    return folder
