"""From what a user names, a run id or a folder, to a model folder on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.card import CARD
from kinopoisk_ft.tracking.store import default_uri, open_store


def model_folder(name: str, uri: str | None = None) -> Path:
    """Return the folder that holds the card; raises UserError if `name` is neither folder nor run.

    A run's output_dir serves as well as the `model` folder inside it.
    """
    folder = Path(name).expanduser()
    try:
        for candidate in (folder, folder / "model"):
            if (candidate / CARD).is_file():
                return candidate
        is_folder = folder.is_dir()
    except (OSError, ValueError):  # no name that a file could have
        is_folder = False
    if is_folder:
        raise UserError(
            f"there is no model in '{name}': no {CARD} in it, nor in a folder `model` below it",
            fix="give the output_dir of a finished run, or a run id",
        )
    return _of_run(name, uri or default_uri())


def _of_run(run_id: str, uri: str) -> Path:
    client = open_store(uri)
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise UserError(
            f"'{run_id}' is neither a folder nor a run in the store",
            where=uri,
            fix="give a model folder, another --uri, or a run id from `make ui`",
        ) from error
    if run.outputs and run.outputs.model_outputs:
        model_id = run.outputs.model_outputs[0].model_id
        mlflow.set_tracking_uri(uri)
        local = Path(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
        return local / "artifacts" / "model"
    return _own_folder(client, run_id, uri)


def _own_folder(client: MlflowClient, run_id: str, uri: str) -> Path:
    """Return the run's own folder: tracking.log_model=false keeps the model out of the store."""
    try:
        result = json.loads(Path(client.download_artifacts(run_id, "result.json")).read_text())
        folder = Path(result["model_dir"])
        there = (folder / CARD).is_file()
    except (MlflowException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"run '{run_id}' has no model", where=uri, fix="choose a finished training run"
        ) from error
    if not there:
        raise UserError(f"the model of run '{run_id}' is no longer here", where=str(folder))
    return folder
