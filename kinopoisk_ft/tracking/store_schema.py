"""Check that a database contains a complete store of the installed MLflow version."""

from __future__ import annotations

import shlex
from pathlib import Path

import mlflow
import mlflow.store.db.utils as mlflow_db
import sqlalchemy
from alembic.script import ScriptDirectory
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from kinopoisk_ft.errors import UserError, first_line
from kinopoisk_ft.text import hide_password

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
REMOTE = ("http", "https", "databricks")
USE_ANOTHER = (
    "choose another store: tracking.uri=sqlite:////another/folder/mlflow.db to train, or "
    "--uri sqlite:////another/folder/mlflow.db"
)
FIX_MISSING = "pass a store with --uri <uri>, or train first in this folder: kinopoisk-ft train"
# Words in SQLite's error messages if another process has locked the file or the disk is full.
TEMPORARY = ("locked", "busy", "full")
# Tables that are not empty in an empty store, because MLflow's migrations add rows to them.
FILLED_BY_MIGRATIONS = {"alembic_version", "workspaces"}


class UnreachableError(UserError):
    """Raised when the store does not answer now, but may answer later."""


class UnfinishedError(UserError):
    """Raised when a store is incomplete because its creation was interrupted."""


def is_temporary(error: BaseException, uri: str) -> bool:
    """Return whether an error may be temporary, such as a locked database."""
    # MLflow wraps the errors of SQLAlchemy, and only the original error shows the reason.
    cause = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error
    if uri.startswith("sqlite"):
        # For SQLite, OperationalError also means permanent problems, such as a missing folder.
        message = str(cause).lower()
        return isinstance(cause, OperationalError) and any(word in message for word in TEMPORARY)
    if isinstance(error, MlflowException) and uri.partition(":")[0] in REMOTE:
        # A request without an answer counts as status 500. 408 is a timeout, 429 too many requests.
        return error.get_http_status_code() >= 500 or error.get_http_status_code() in (408, 429)
    return isinstance(cause, OperationalError)


def check_database(uri: str, fix: str = FIX_MISSING) -> None:
    """Check that a database has the schema of the installed MLflow version.

    Args:
        fix: what the user can do if there is no store, for the error message.

    Raises:
        UnfinishedError: the creation of the store was interrupted.
        UserError: there is no store, or its schema is different.
    """
    url = _parse_uri(uri)
    where = hide_password(uri)
    # SQLite would create the missing file instead of raising an error.
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
        what = f"the store cannot be read: {first_line(error)}"
        raise kind(what, where=where, fix=fix) from error
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
            fix=f"back up the store and run mlflow db upgrade {shlex.quote(where)}, or install the "
            "MLflow version that wrote it"
            if found in revisions
            else "install the MLflow version that wrote the store, which is newer than this one",
        )


def _parse_uri(uri: str) -> URL:
    try:
        url = make_url(uri)
    # A port that is not a number raises ValueError.
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.get_backend_name() not in DATABASES:
        fix = "pass --uri sqlite:////absolute/path/mlflow.db or --uri http://host:port"
        raise UserError("this is not the URI of an MLflow store", where=hide_password(uri), fix=fix)
    return url


def _read_schema_version(engine: sqlalchemy.Engine) -> str | None:
    tables = set(sqlalchemy.inspect(engine).get_table_names())
    if not {"alembic_version", "experiments", "runs"} <= tables:
        return None
    with engine.connect() as connection:
        # The row contains the id of the last migration that Alembic has applied.
        row = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).first()
    return str(row[0]) if row else None


def _is_unfinished(engine: sqlalchemy.Engine) -> bool:
    # This package creates only SQLite stores, so it must not replace any other database.
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
