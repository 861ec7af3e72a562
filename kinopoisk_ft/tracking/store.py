"""Open an MLflow store for reading; nothing is created or migrated on the way."""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import mlflow.store.db.utils as mlflow_db
import sqlalchemy
from alembic.script import ScriptDirectory
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from kinopoisk_ft.errors import UserError

FIX_MISSING = "give --uri, or train first in this folder: python -m kinopoisk_ft"
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
REMOTE = ("http", "https", "databricks")
# What an sqlite file says when another process holds it, or the disk takes no more.
PASSING = ("locked", "busy", "full")
# Tables in which MLflow's own migrations leave rows.
FILLED_BY_MIGRATIONS = {"alembic_version", "workspaces"}
FIX_UNFINISHED = "start a training run: it creates the store again"


class UnreachableError(UserError):
    """The store gives no answer now and may give one later: what was asked for is not wrong."""


class UnfinishedError(UserError):
    """The creation of the store was interrupted before anything was recorded in it."""


def may_pass(error: BaseException, uri: str) -> bool:
    """Return whether an error of a store may be gone later: no answer, a 5xx, a lock, a full disk.

    Errors that no store raised, as in a wrong path or a wrong name, do not pass.
    """
    cause = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error
    if uri.startswith("sqlite"):
        database = isinstance(cause, OperationalError)
        return database and any(word in str(cause).lower() for word in PASSING)
    if isinstance(error, MlflowException) and uri.partition(":")[0] in REMOTE:
        return error.get_http_status_code() >= 500 or error.get_http_status_code() in (408, 429)
    return isinstance(cause, OperationalError)


def shown(uri: str) -> str:
    """Return the address without its password."""
    try:
        return make_url(uri).render_as_string(hide_password=True)
    except ArgumentError:
        return uri


def default_uri() -> str:
    """Return MLFLOW_TRACKING_URI, else the sqlite store of the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def open_store(uri: str) -> MlflowClient:
    """Return a client of the store at `uri`.

    Raises UserError where the store does not exist or belongs to another MLflow version: MLflow
    itself would create the one and may migrate the other.
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
        raise UserError(f"MLflow cannot open the store: {error.message}", where=uri) from error


def _parse(uri: str) -> URL:
    try:
        url = make_url(uri)
    except ArgumentError:
        url = None
    if url is None or url.get_backend_name() not in DATABASES:
        fix = "give --uri as sqlite:////absolute/path/mlflow.db or http://host:port"
        raise UserError("this is no store URI", where=uri, fix=fix)
    return url


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store, None for any other store."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(make_url(uri).database or "")


def check_database(uri: str) -> None:
    """Raise UserError unless a database is a store with the schema of the MLflow at hand.

    Raises:
        UnfinishedError: the process that created the store was killed; there is nothing in it.
    """
    url = _parse(uri)
    where = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise UserError("the MLflow store does not exist", where=where, fix=FIX_MISSING)
    try:
        engine = sqlalchemy.create_engine(url)
        try:
            found = _schema_version(engine)
            unfinished = found != _migrations().get_current_head() and _is_unfinished(engine, found)
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        kind = UnreachableError if may_pass(error, uri) else UserError
        reason = str(error).splitlines()[0]
        raise kind(f"the store cannot be read: {reason}", where=where) from error
    if unfinished:
        raise UnfinishedError(
            "the store is incomplete and empty: its creation was interrupted",
            where=where,
            fix=FIX_UNFINISHED,
        )
    if found is None:
        raise UserError("this database is no MLflow store", where=where, fix=FIX_MISSING)
    _check_version(found, where)


def _migrations() -> ScriptDirectory:
    """Return the migrations that MLflow itself compares with; there is no public function."""
    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))


def _check_version(found: str, where: str) -> None:
    migrations = _migrations()
    expected = migrations.get_current_head()
    if found != expected:
        older = found in {script.revision for script in migrations.walk_revisions()}
        raise UserError(
            f"the store was written by another MLflow version: its schema is {found}, "
            f"MLflow {mlflow.__version__} reads {expected}",
            where=where,
            fix=f"after a backup, run mlflow db upgrade {where}, or install the older MLflow"
            if older
            else "install the MLflow that wrote it: this one does not know so new a schema",
        )


def _schema_version(engine: sqlalchemy.Engine) -> str | None:
    """Return the revision of a store's schema; None where there is no store, or only a part."""
    if not {"alembic_version", "experiments", "runs"} <= set(
        sqlalchemy.inspect(engine).get_table_names()
    ):
        return None
    with engine.connect() as connection:
        row = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).first()
    return str(row[0]) if row else None


def _is_unfinished(engine: sqlalchemy.Engine, version: str | None) -> bool:
    """Return whether an SQLite file is what a killed creation leaves: nobody's rows are in it.

    That is an empty file, or some of MLflow's tables, without a row, at one of its revisions.
    Each new store has an experiment, so that a complete one of an older MLflow is not taken for it.
    """
    if engine.dialect.name != "sqlite":
        return False
    tables = set(sqlalchemy.inspect(engine).get_table_names())
    if not tables:
        return True
    known = {*mlflow_db.Base.metadata.tables, "alembic_version"}
    # Alembic copies a table under such a name to alter it.
    ours = all(name.removeprefix("_alembic_tmp_") in known for name in tables)
    revisions = {None, *(script.revision for script in _migrations().walk_revisions())}
    if not ours or "experiments" not in tables or version not in revisions:
        return False
    with engine.connect() as connection:
        rows = (
            connection.execute(sqlalchemy.text(f'SELECT 1 FROM "{name}" LIMIT 1')).first()
            for name in tables - FILLED_BY_MIGRATIONS
        )
        return not any(rows)


def _check_folder(uri: str) -> None:
    folder = Path(local_file_uri_to_path(uri))
    if folder.is_file():
        fix = f"for a database file give --uri sqlite:///{folder.absolute()}"
        raise UserError("a file is no store URI", where=uri, fix=fix)
    if not any(folder.glob("*/meta.yaml")):
        raise UserError("the MLflow store does not exist", where=uri, fix=FIX_MISSING)
