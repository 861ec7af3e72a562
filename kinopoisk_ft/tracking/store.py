"""Open MLflow stores, and create missing stores atomically.

This module creates and checks an SQLite store before MLflow opens it. Otherwise, MLflow could leave
an incomplete store when it is interrupted, and could migrate a store of another version.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
from pathlib import Path

import mlflow
import mlflow.store.db.utils as mlflow_db
import sqlalchemy
from alembic.script import ScriptDirectory
from filelock import FileLock
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import sync_to_disk, temporary_path

log = logging.getLogger(__name__)

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
REMOTE = ("http", "https", "databricks")
FIX_MISSING = "pass a store with --uri <uri>, or train first in this folder: kinopoisk-ft train"
# Words in SQLite's error messages if another process has locked the file or the disk is full.
TEMPORARY = ("locked", "busy", "full")
# Failed requests are retried by `Delivery`. MLflow's own seven retries would take minutes.
HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
# Tables that are not empty in an empty store, because MLflow's migrations add rows to them.
FILLED_BY_MIGRATIONS = {"alembic_version", "workspaces"}
# After this number of seconds without a change, no process is creating the store file any more.
SETTLED = 3.0


class UnreachableError(UserError):
    """Raised when the store does not answer now, but may answer later."""


class UnfinishedError(UserError):
    """Raised when a store is incomplete because its creation was interrupted."""


def is_temporary(error: BaseException, uri: str) -> bool:
    """Return whether an error may be temporary, such as a locked database."""
    cause = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error
    if uri.startswith("sqlite"):
        message = str(cause).lower()
        return isinstance(cause, OperationalError) and any(word in message for word in TEMPORARY)
    if isinstance(error, MlflowException) and uri.partition(":")[0] in REMOTE:
        return error.get_http_status_code() >= 500 or error.get_http_status_code() in (408, 429)
    return isinstance(cause, OperationalError)


def hide_password(uri: str) -> str:
    """Replace the password in a URI with asterisks."""
    try:
        return make_url(uri).render_as_string(hide_password=True)
    except ArgumentError:
        return uri


def default_uri() -> str:
    """Return $MLFLOW_TRACKING_URI, by default the URI of ./mlflow.db."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def absolute_uri(uri: str | None) -> str:
    """Make the SQLite path in a store URI absolute; if the URI is None, use `default_uri()`."""
    uri = uri or default_uri()
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
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
        what = f"MLflow cannot open the store: {error.message}"
        raise UserError(what, where=hide_password(uri), fix=fix) from error


def open_experiment(
    uri: str | None, experiment: str, artifacts: str | None
) -> tuple[MlflowClient, str]:
    """Open a store and an experiment for writing.

    A missing SQLite store and a missing experiment are created.

    Args:
        uri: the URI of the store; if None, `default_uri()` is used.
        artifacts: the artifact location of a new experiment. If None, artifacts go to the folder
            `mlartifacts` next to an SQLite file, or to the server's default location.

    Returns:
        A client and the id of the experiment.

    Raises:
        UnreachableError: the store does not answer now.
        UserError: the store cannot be opened, or the experiment is deleted.
    """
    uri = absolute_uri(uri)
    for name, value in HTTP_LIMITS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # MLflow logs a traceback whenever a database is locked, but the error is reported here.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        if not uri.startswith("sqlite:///"):
            client = MlflowClient(tracking_uri=uri)
            return client, _open_experiment(client, experiment, artifacts, uri)
        file = Path(make_url(uri).database or "")
        file.parent.mkdir(parents=True, exist_ok=True)
        artifacts = artifacts or (file.parent / "mlartifacts").as_uri()
        with FileLock(f"{file}.lock"):
            _ensure_database(uri, file)
            client = MlflowClient(tracking_uri=uri)
            return client, _open_experiment(client, experiment, artifacts, uri)
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
        kind = UnreachableError if is_temporary(error, uri) else UserError
        raise kind(
            f"the MLflow store cannot be opened: {str(error).splitlines()[0]}",
            where=f"tracking.uri={hide_password(uri)}",
            fix="check this address and its permissions, or use tracking=offline",
        ) from error


def _open_experiment(client: MlflowClient, name: str, artifacts: str | None, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            # Another process may have created the experiment in the meantime.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != LifecycleStage.ACTIVE:
        restore = restore_command(uri, "experiments", found.experiment_id)
        raise UserError(
            f"the experiment '{name}' has been deleted, so no run can be added to it",
            where=f"tracking.uri={hide_password(uri)}",
            fix=f"restore it: {restore}; or choose another name: tracking.experiment=<name>",
        )
    return str(found.experiment_id)


def check_database(uri: str, fix: str = FIX_MISSING) -> None:
    """Check that a database has the schema of the installed MLflow version.

    Args:
        fix: what the user can do if there is no store, for the error message.

    Raises:
        UnfinishedError: the creation of the store was interrupted.
        UserError: there is no store, or its schema is different.
    """
    url = _parse_uri(uri)
    where = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise UserError("the MLflow store does not exist", where=where, fix=fix)
    # MLflow has no public function that compares the schemas.
    migrations = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    expected = migrations.get_current_head()
    revisions = {script.revision for script in migrations.walk_revisions()}
    try:
        engine = sqlalchemy.create_engine(url)
        try:
            found = _read_schema_version(engine)
            # A store with the expected or an unknown schema is complete.
            is_unfinished = found in {None, *revisions} - {expected} and _is_unfinished(engine)
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        kind = UnreachableError if is_temporary(error, uri) else UserError
        reason = str(error).splitlines()[0]
        raise kind(f"the store cannot be read: {reason}", where=where, fix=fix) from error
    if is_unfinished:
        raise UnfinishedError(
            "the store is incomplete and empty: its creation was interrupted",
            where=where,
            fix="start a training run, which creates the store again",
        )
    if found is None:
        raise UserError("this database is not an MLflow store", where=where, fix=fix)
    if found != expected:
        raise UserError(
            f"the store was written by another MLflow version: its schema is {found}, "
            f"but MLflow {mlflow.__version__} reads {expected}",
            where=where,
            fix=f"back up the store and run mlflow db upgrade {where}, or install the MLflow "
            "version that wrote it"
            if found in revisions
            else "install the MLflow version that wrote the store, which is newer than this one",
        )


def _parse_uri(uri: str) -> URL:
    try:
        url = make_url(uri)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() not in DATABASES:
        fix = "pass --uri sqlite:////absolute/path/mlflow.db or --uri http://host:port"
        raise UserError("this is not the URI of an MLflow store", where=uri, fix=fix)
    return url


def _check_folder(uri: str) -> None:
    folder = Path(local_file_uri_to_path(uri))
    if folder.is_file():
        fix = f"if it is an SQLite database, pass --uri sqlite:///{folder.absolute()}"
        raise UserError("this is the path of a file, not the URI of a store", where=uri, fix=fix)
    if not any(folder.glob("*/meta.yaml")):
        raise UserError("the MLflow store does not exist", where=uri, fix=FIX_MISSING)


def _read_schema_version(engine: sqlalchemy.Engine) -> str | None:
    tables = set(sqlalchemy.inspect(engine).get_table_names())
    if not {"alembic_version", "experiments", "runs"} <= tables:
        return None
    with engine.connect() as connection:
        row = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).first()
    return str(row[0]) if row else None


def _is_unfinished(engine: sqlalchemy.Engine) -> bool:
    if engine.dialect.name != "sqlite":
        return False
    tables = set(sqlalchemy.inspect(engine).get_table_names())
    if not tables:
        return True
    known = {*mlflow_db.Base.metadata.tables, "alembic_version"}
    # To alter a table, Alembic copies it under a temporary name.
    if not {name.removeprefix("_alembic_tmp_") for name in tables} <= known:
        return False
    # A complete store of any MLflow version has at least one experiment.
    with engine.connect() as connection:
        return "experiments" in tables and not any(
            connection.execute(sqlalchemy.text(f'SELECT 1 FROM "{name}" LIMIT 1')).first()
            for name in tables - FILLED_BY_MIGRATIONS
        )


def _ensure_database(uri: str, file: Path) -> None:
    # The caller holds the store's lock, so no other process is using the temporary file.
    _delete_database(temporary_path(file))
    if not file.exists():
        _create_database(file)
    while True:
        try:
            another = "set tracking.uri=sqlite:////another/folder/mlflow.db"
            return check_database(uri, another)
        except UnfinishedError:
            # MLflow's server does not use this lock, so it may be creating the store right now.
            left = file.stat().st_mtime + SETTLED - time.time()
            if left <= 0:
                break
        time.sleep(min(left, SETTLED))
    log.warning("%s is created again, because its creation was interrupted", file)
    _delete_database(file)
    _create_database(file)


def _create_database(file: Path) -> None:
    # MLflow creates the tables without a transaction, so a killed process leaves a partial file.
    part = temporary_path(file)
    engine = mlflow_db.create_sqlalchemy_engine(f"sqlite:///{part}")
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
        os.link(part, file)
    except FileExistsError:
        log.info("another program has created %s", file)
    except OSError:
        # The file system has no hard links.
        os.replace(part, file)
    sync_to_disk(file.parent)
    _delete_database(part)


def _delete_database(file: Path) -> None:
    for suffix in ("-journal", ""):
        Path(f"{file}{suffix}").unlink(missing_ok=True)
