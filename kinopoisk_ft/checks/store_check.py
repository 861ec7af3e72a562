"""Check whether a run can log to the default MLflow store."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path

from kinopoisk_ft.checks.finding import Finding, format_error
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.text import hide_password
from kinopoisk_ft.tracking.store import (
    SQLITE,
    default_uri,
    get_database_file,
    open_store,
)
from kinopoisk_ft.tracking.store_schema import FIX_MISSING, REMOTE, USE_ANOTHER

NAME = "MLflow store"


def check_store() -> Iterator[Finding]:
    """Check the default MLflow store. A missing store is not created."""
    uri = default_uri()
    file, shown = _find_local_path(uri), hide_password(uri)
    if file is not None and not file.exists():
        yield _check_parent_folder(shown, file)
    elif file is not None and not os.access(file, os.W_OK):
        # `open_store` only reads, so it does not notice that the store is read-only.
        fix = f"chmod u+w {shlex.quote(str(file))}, or {USE_ANOTHER}"
        yield Finding(NAME, "broken", f"{shown} cannot be written", True, fix)
    else:
        yield _check_open(uri, shown)


def _check_open(uri: str, shown: str) -> Finding:
    detail = f"{shown} can be opened and has the schema of MLflow {mlflow.__version__}"
    try:
        client = open_store(uri)
        # A client connects to a server only with its first request.
        if uri.partition(":")[0] in REMOTE:
            client.search_experiments(max_results=1)
            detail = f"{shown} answers"
    except UserError as error:
        # FIX_MISSING names the option --uri, which the doctor does not have.
        fix = USE_ANOTHER if error.fix in (None, FIX_MISSING) else error.fix
        return Finding(NAME, "broken", f"{shown}: {error.what}", True, fix)
    except MlflowException as error:
        fix = f"start the server, or {USE_ANOTHER}"
        reason = format_error(error)[:300]
        return Finding(NAME, "broken", f"{shown}: {reason}", True, fix)
    return Finding(NAME, "ok", detail, needed=True)


def _find_local_path(uri: str) -> Path | None:
    """Return the file or folder of a local store, or None for a server."""
    if uri.startswith(SQLITE):
        return get_database_file(uri)
    # "databricks" is a whole URI. Other URIs with a scheme are servers or databases.
    if uri in REMOTE or ("://" in uri and not uri.startswith("file:")):
        return None
    return Path(local_file_uri_to_path(uri))


def _check_parent_folder(uri: str, file: Path) -> Finding:
    # The first run also creates missing parent folders, so check the nearest existing one.
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not os.access(folder, os.W_OK):
        detail = f"{uri} does not exist, and {folder} cannot be written"
        return Finding(NAME, "broken", detail, True, USE_ANOTHER)
    return Finding(NAME, "ok", f"{uri} will be created by the first run", needed=True)
