"""Open MLflow stores, and create missing stores atomically.

This module creates and checks an SQLite store before MLflow opens it. Otherwise, MLflow could leave
an incomplete store when it is interrupted, and could migrate a store of another version.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import mlflow.store.db.utils as mlflow_db
import sqlalchemy
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.mlflow_tags import (
    MLFLOW_EXPERIMENT_PRIMARY_METRIC_GREATER_IS_BETTER,
    MLFLOW_EXPERIMENT_PRIMARY_METRIC_NAME,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from kinopoisk_ft.errors import UserError, first_line
from kinopoisk_ft.files import lacks_locks, make_lock, sync_to_disk, temporary_path
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.text import hide_password
from kinopoisk_ft.tracking.mlflow_names import to_mlflow
from kinopoisk_ft.tracking.store_schema import (
    FIX_MISSING,
    REMOTE,
    USE_ANOTHER,
    UnfinishedError,
    UnreachableError,
    check_database,
    is_temporary,
)

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"
# Failed requests are retried by `Delivery`. MLflow's own seven retries would take minutes.
# The timeout is in seconds.
HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
# Without the first tag, MLflow's UI opens an experiment in its layout for language-model apps.
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
EXPERIMENT_TAGS = {
    KIND: TRAINING,
    MLFLOW_EXPERIMENT_PRIMARY_METRIC_NAME: to_mlflow(f"test_{HEADLINE}"),
    MLFLOW_EXPERIMENT_PRIMARY_METRIC_GREATER_IS_BETTER: "True",
}
FIX_OPENING = "check this address and its permissions, or train with tracking=offline"
FIX_LOCKS = (
    "SQLite needs a file system with locks: put the store on a local disk, send the runs to a "
    "server (make tracking-server), or train with tracking=offline"
)
# A store file that has not changed for this number of seconds is not being created any more.
SETTLED = 3.0


def default_uri() -> str:
    """Return $MLFLOW_TRACKING_URI, by default the URI of ./mlflow.db."""
    return os.environ.get("MLFLOW_TRACKING_URI") or build_sqlite_uri(Path.cwd() / "mlflow.db")


def build_sqlite_uri(file: Path) -> str:
    """Return the URI of an SQLite store."""
    plain = f"{SQLITE}{file}"
    # From version 2.1 on, SQLAlchemy decodes the path of a URI, such as %20 in a folder name.
    return plain if get_database_file(plain) == file else f"{SQLITE}{quote(str(file))}"


def get_database_file(uri: str) -> Path:
    """Return the file of an SQLite store."""
    return Path(make_url(uri).database or "")


def absolute_uri(uri: str | None) -> str:
    """Make the SQLite path in a store URI absolute; if the URI is None, use `default_uri()`."""
    uri = uri or default_uri()
    if uri.startswith(SQLITE):
        path, mark, query = uri.partition("?")
        return build_sqlite_uri(get_database_file(path).absolute()) + mark + query
    return uri


def restore_command(uri: str, kind: str, deleted_id: str) -> str:
    """Return the command that restores a run or experiment; `kind` is "runs" or "experiments"."""
    option = f"--{kind.removesuffix('s')}-id {deleted_id}"
    return f"MLFLOW_TRACKING_URI={shlex.quote(hide_password(uri))} mlflow {kind} restore {option}"


def open_store(uri: str) -> MlflowClient:
    """Open an existing store for reading.

    Raises:
        UserError: the store does not exist or belongs to another MLflow version.
    """
    # "databricks" is also a valid URI of MLflow, although it has no scheme.
    scheme = uri.partition(":")[0] if "://" in uri else uri
    if scheme not in REMOTE:
        if "://" in uri and scheme != "file":
            check_database(uri)
        else:
            _check_folder(uri)
    try:
        return MlflowClient(uri)
    except MlflowException as error:
        fix = "check the address, or use another store with --uri <uri> or MLFLOW_TRACKING_URI"
        what = f"MLflow cannot open the store: {first_line(error)}"
        raise UserError(what, where=hide_password(uri), fix=fix) from error


def open_experiment(uri: str, experiment: str, artifacts: str | None) -> tuple[MlflowClient, str]:
    """Open a store and an experiment for writing.

    A missing SQLite store and a missing experiment are created.

    Args:
        uri: the URI of the store, from `absolute_uri`.
        artifacts: the artifact location of a new experiment. If None, artifacts go to the folder
            `mlartifacts` next to an SQLite file, or to the server's default location.

    Returns:
        A client and the id of the experiment.

    Raises:
        UnreachableError: the store does not answer now.
        UserError: the store cannot be opened, or the experiment is deleted.
    """
    _limit_requests()
    if uri.startswith(SQLITE):
        artifacts = artifacts or (get_database_file(uri).parent / "mlartifacts").as_uri()
    with _explain_errors(uri), _hold_database(uri):
        client = MlflowClient(tracking_uri=uri)
        return client, _open_experiment(client, experiment, artifacts, uri)


def find_experiment(uri: str, name: str) -> tuple[MlflowClient, str] | None:
    """Open a store and an experiment for reading, or return None if one of them does not exist.

    Args:
        uri: the URI of the store, from `absolute_uri`.

    Raises:
        UnreachableError: the store does not answer now.
        UserError: the store cannot be opened, or the experiment is deleted.
    """
    _limit_requests()
    with _explain_errors(uri):
        if uri.startswith(SQLITE):
            if not get_database_file(uri).is_file():
                return None
            try:
                check_database(uri, USE_ANOTHER)
            except UnfinishedError:
                return None
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(name)
        if found is None:
            return None
        _check_active(found, uri)
        return client, str(found.experiment_id)


def ensure_store(uri: str) -> None:
    """Create a missing SQLite store, and do nothing for other stores.

    Raises:
        UserError: the store cannot be created, or belongs to another MLflow version.
    """
    with _explain_errors(uri), _hold_database(uri):
        pass


def _limit_requests() -> None:
    for name, value in HTTP_LIMITS.items():
        os.environ.setdefault(name, value)


@contextmanager
def _explain_errors(uri: str) -> Iterator[None]:
    # MLflow logs a traceback whenever a database is locked, but the error is reported here.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
        kind = UnreachableError if is_temporary(error, uri) else UserError
        raise kind(
            f"the MLflow store cannot be opened: {first_line(error)}",
            where=f"tracking.uri={hide_password(uri)}",
            fix=FIX_LOCKS if lacks_locks(error) else FIX_OPENING,
        ) from error


@contextmanager
def _hold_database(uri: str) -> Iterator[None]:
    """Lock an SQLite store for a `with` block, and create it if it is missing.

    Nothing is done for other stores.
    """
    if not uri.startswith(SQLITE):
        yield
        return
    file = get_database_file(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with make_lock(Path(f"{file}.lock")):
        _ensure_database(uri, file)
        yield


def _open_experiment(client: MlflowClient, name: str, artifacts: str | None, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifacts, tags=EXPERIMENT_TAGS))
        except MlflowException:
            # Another process may have created the experiment in the meantime.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    _check_active(found, uri)
    for key, value in EXPERIMENT_TAGS.items():
        # MLflow's UI guesses the kind of an experiment without this tag, for example
        # "genai_development_inferred".
        if found.tags.get(key, "_inferred").endswith("_inferred"):
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def _check_active(experiment: Experiment, uri: str) -> None:
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        restore = restore_command(uri, "experiments", experiment.experiment_id)
        raise UserError(
            f"the experiment '{experiment.name}' has been deleted, so no run can be added to it",
            where=f"tracking.uri={hide_password(uri)}",
            fix=f"restore it: {restore}; or choose another name: tracking.experiment=<name>",
        )


def _check_folder(uri: str) -> None:
    folder = Path(local_file_uri_to_path(uri))
    if folder.is_file():
        found = build_sqlite_uri(folder.absolute())
        fix = f"if it is an SQLite database, pass --uri {shlex.quote(found)}"
        raise UserError("this is the path of a file, not the URI of a store", where=uri, fix=fix)
    if not any(folder.glob("*/meta.yaml")):
        raise UserError("the MLflow store does not exist", where=uri, fix=FIX_MISSING)


def _ensure_database(uri: str, file: Path) -> None:
    # The caller holds the store's lock, so no other process is using the temporary file.
    _delete_database(temporary_path(file))
    if not file.exists():
        _create_database(file)
    before = None
    while True:
        try:
            return check_database(uri, USE_ANOTHER)
        except UnfinishedError:
            # MLflow's server does not use this lock, so it may be creating the store right now.
            # If the clock was set back, the age is negative, so compare the time of change, too.
            changed = file.stat().st_mtime
            if changed == before or time.time() - changed >= SETTLED:
                break
            before = changed
        time.sleep(SETTLED)
    log.warning("%s is created again, because its creation was interrupted", file)
    _delete_database(file)
    _create_database(file)


def _create_database(file: Path) -> None:
    # MLflow creates the tables without a transaction, so a killed process leaves a partial file.
    part = temporary_path(file)
    engine = mlflow_db.create_sqlalchemy_engine(build_sqlite_uri(part))
    # One fsync at the end, instead of one per statement, halves the time.
    sqlalchemy.event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
    try:
        # `MlflowClient` would call the same function for the final file.
        mlflow_db._initialize_tables(engine)
    finally:
        engine.dispose()
    sync_to_disk(part)
    # SQLite would apply the journal of an earlier file of this name to the new one.
    Path(f"{file}-journal").unlink(missing_ok=True)
    try:
        # Unlike a rename, a hard link never replaces a store that another program has just created.
        os.link(part, file)
    except FileExistsError:
        log.info("another program has created %s", file)
    except OSError:
        # The file system has no hard links.
        os.replace(part, file)
    # The new name survives a power loss only after the folder is on disk, too.
    sync_to_disk(file.parent)
    _delete_database(part)


def _delete_database(file: Path) -> None:
    # The journal is deleted first: SQLite would apply it to the next file with this name.
    for suffix in ("-journal", ""):
        Path(f"{file}{suffix}").unlink(missing_ok=True)
