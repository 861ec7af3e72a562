"""Open an experiment of an MLflow store for writing; both are made if they are new."""

from __future__ import annotations

import logging
import os
import shlex
import time
from contextlib import nullcontext
from pathlib import Path

import mlflow.store.db.utils as mlflow_db
import sqlalchemy
from filelock import FileLock
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import beside, force
from kinopoisk_ft.tracking.store import (
    FIX_MISSING,
    UnfinishedError,
    UnreachableError,
    check_database,
    default_uri,
    may_pass,
    shown,
    sqlite_file,
)

# Events are sent again by whoever sends them: MLflow's own 7 retries would wait minutes, and might
# log what the server has taken without saying so.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}

# Seconds without a change after which nobody is creating a store: one statement takes far less.
SETTLED = 3.0

log = logging.getLogger(__name__)


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
    sqlite store go to `mlartifacts` beside it.

    Raises:
        UnreachableError: the store gives no answer now.
        UserError: the store cannot be opened, or the experiment is deleted.
    """
    uri, location = absolute_uri(uri), artifacts
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It would print a traceback for each time that a database is locked; the error itself is told.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        file = sqlite_file(uri)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            location = artifacts or (file.parent / "mlartifacts").as_uri()
        with FileLock(f"{file}.lock") if file is not None else nullcontext():
            if file is not None:
                _ensure_database(uri, file)
            client = MlflowClient(tracking_uri=uri)
            return client, _experiment(client, experiment, location, uri)
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
        kind = UnreachableError if may_pass(error, uri) else UserError
        raise kind(
            f"the MLflow store cannot be opened: {str(error).splitlines()[0]}",
            where=f"tracking.uri={shown(uri)}",
            fix="check the path and its rights, or use tracking=none",
        ) from error


def _ensure_database(uri: str, file: Path) -> None:
    """Create the store if there is none, or only what a killed creation left; check it otherwise.

    The caller holds the store's lock: what another creation has left under the temporary name is of
    a process that was killed.
    """
    _delete_database(beside(file))
    if not file.exists():
        _create_database(file)
    while True:
        try:
            return _check_schema(uri)
        except UnfinishedError:
            # MLflow's server takes no lock of ours: it may be creating the store right now.
            left = file.stat().st_mtime + SETTLED - time.time()
            if left <= 0:
                break
        time.sleep(min(left, SETTLED))
    log.warning("%s is created again: its creation was interrupted", file)
    _delete_database(file)
    _create_database(file)


def _create_database(file: Path) -> None:
    """Create an sqlite store under a temporary name, and move it into place when it is complete.

    A process that is killed leaves no store or a complete one: its hundreds of statements are no
    transaction. A store that another program has put there in the meantime stays.
    """
    part = beside(file)
    engine = mlflow_db.create_sqlalchemy_engine(f"sqlite:///{part}")
    # One fsync at the end replaces one a statement: half the time.
    sqlalchemy.event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
    try:
        # `MlflowClient` would do the same, but in place.
        mlflow_db._initialize_tables(engine)
    finally:
        engine.dispose()
    force(part)
    # SQLite would apply the journal of an earlier file of this name to the new one.
    Path(f"{file}-journal").unlink(missing_ok=True)
    try:
        os.link(part, file)
    except FileExistsError:
        log.info("another program has created %s", file)
    except OSError:
        # The file system has no hard links.
        os.replace(part, file)
    force(file.parent)
    _delete_database(part)


def _delete_database(file: Path) -> None:
    for suffix in ("-journal", ""):
        Path(f"{file}{suffix}").unlink(missing_ok=True)


def _experiment(client: MlflowClient, name: str, location: str | None, uri: str) -> str:
    """Return the experiment's id, created if new; UserError if it is deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process may have been first
            if found is None:
                raise
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise UserError(
            f"the experiment '{name}' is deleted: a run cannot be added to it",
            where=f"tracking.uri={shown(uri)}",
            fix=f"restore it: {restore_command(uri, 'experiments', found.experiment_id)}; "
            "or choose another name: tracking.experiment=<name>",
        )
    experiment_id: str = found.experiment_id
    return experiment_id


def restore_command(uri: str, what: str, known_as: str) -> str:
    """Return the command that restores deleted `experiments` or `runs`; passwords are left out."""
    option = f"--{what.removesuffix('s')}-id {known_as}"
    return f"MLFLOW_TRACKING_URI={shlex.quote(shown(uri))} mlflow {what} restore {option}"


def _check_schema(uri: str) -> None:
    """Raise UserError where a file is no MLflow store, or that of another MLflow version."""
    try:
        check_database(uri)
    except (UnreachableError, UnfinishedError):
        raise
    except UserError as error:
        another = "give tracking.uri=sqlite:////another/folder/mlflow.db"
        fix = error.fix if error.fix not in (None, FIX_MISSING) else another
        raise UserError(error.what, where=f"tracking.uri={uri}", fix=fix) from error
