"""Find the model folder of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kinopoisk_ft.errors import UserError, first_line
from kinopoisk_ft.models.card import CARD
from kinopoisk_ft.text import hide_password

if TYPE_CHECKING:
    from mlflow import MlflowClient


def find_model_folder(name: str, uri: str | None = None) -> Path:
    """Return the absolute path of the model folder, which contains kinopoisk_ft.json.

    Args:
        name: a model folder, an output_dir, or a run id in the MLflow store.
        uri: URI of the MLflow store. If None, the environment variable MLFLOW_TRACKING_URI is used,
            or ./mlflow.db if the variable is not set.

    Raises:
        UserError: the folder or run does not exist, or has no model.
    """
    folder = Path(os.path.expanduser(name))
    # The methods of `Path` would raise an error for names that are longer than a file name can be.
    for candidate in (folder, folder / "model"):
        if os.path.isfile(candidate / CARD):
            # Callers use the parent and the name of the folder, which "." does not have.
            return candidate.resolve()
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
    try:
        client = open_store(uri)
        run = client.get_run(run_id)
    except (UserError, MlflowException) as error:
        # If the user mistyped the name of a folder, there may be no store at all.
        fix = getattr(error, "fix", None) or "choose it in the MLflow UI, or set another --uri"
        raise UserError(
            f"'{run_id}' is not a folder, and no such run was found: {first_line(error)}",
            where=hide_password(uri),
            fix=f"correct the path of the folder or, for the id of a run, {fix}",
        ) from error
    if run.outputs and run.outputs.model_outputs:
        model_id = run.outputs.model_outputs[0].model_id
        # MLflow looks for models:/ URIs in the default store of this process.
        mlflow.set_tracking_uri(uri)
        try:
            local = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
        except (MlflowException, OSError) as error:
            raise UserError(
                f"the model of run '{run_id}' cannot be downloaded: {first_line(error)}",
                where=hide_password(uri),
                fix="use the output_dir of the run, if it still exists",
            ) from error
        # MLflow saves the folder `model` of the run as an artifact of the pyfunc model.
        return local / "artifacts" / "model"
    return _find_recorded_folder(client, run_id, uri)


def _find_recorded_folder(client: MlflowClient, run_id: str, uri: str) -> Path:
    from mlflow.exceptions import MlflowException

    # With tracking.log_model=false, the store contains only the path of the model folder.
    try:
        result = json.loads(Path(client.download_artifacts(run_id, "result.json")).read_bytes())
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
