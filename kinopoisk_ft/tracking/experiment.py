"""Open an experiment of an MLflow store for writing; both are made if they are new."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking.store import (
    FIX_MISSING,
    UnreachableError,
    check_database,
    default_uri,
    may_pass,
    shown,
)

# Events are sent again by whoever sends them: MLflow's own 7 retries would wait minutes, and might
# log what the server has taken without saying so.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


def absolute_uri(uri: str | None) -> str:
    """Return the store's address, the default one for None; an sqlite path is made absolute."""
    uri = uri or default_uri()
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return uri


def open_experiment(
    uri: str | None, experiment: str, artifacts: str | None
) -> tuple[MlflowClient, str]:
    """Return a client and the experiment's id, made if new.

    A relative sqlite path is taken from the working folder. Artifacts of a new experiment in an
    sqlite store go to `mlartifacts` beside it. Its schema is made under a lock: of two processes
    that make it at once, one would fail.

    Raises:
        UnreachableError: the store gives no answer now.
        UserError: the store cannot be opened.
    """
    uri, file, location = absolute_uri(uri), None, artifacts
    if uri.startswith("sqlite:///"):
        file = Path(uri.removeprefix("sqlite:///"))
        location = artifacts or (file.parent / "mlartifacts").as_uri()
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It would print a traceback for each time that a database is locked; the error itself is told.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock") if file is not None else nullcontext():
            if file is not None and file.exists() and file.stat().st_size:
                _check_schema(uri)
            client = MlflowClient(tracking_uri=uri)
            return client, _experiment(client, experiment, location)
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
        kind = UnreachableError if may_pass(error, uri) else UserError
        raise kind(
            f"the MLflow store cannot be opened: {str(error).splitlines()[0]}",
            where=f"tracking.uri={shown(uri)}",
            fix="check the path and its rights, or use tracking=none",
        ) from error


def _experiment(client: MlflowClient, name: str, location: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process may have been first
            if found is None:
                raise
    return found.experiment_id


def _check_schema(uri: str) -> None:
    """Raise UserError where a file is no MLflow store, or that of another MLflow version."""
    try:
        check_database(uri)
    except UnreachableError:
        raise
    except UserError as error:
        another = "give tracking.uri=sqlite:////another/folder/mlflow.db"
        fix = error.fix if error.fix not in (None, FIX_MISSING) else another
        raise UserError(error.what, where=f"tracking.uri={uri}", fix=fix) from error
