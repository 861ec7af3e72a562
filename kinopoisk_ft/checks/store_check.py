"""Whether the MLflow store that a run would log to can be used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path

from kinopoisk_ft.checks.finding import Finding, told
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.tracking.store import (
    FIX_MISSING,
    REMOTE,
    default_uri,
    hide_password,
    open_store,
)

NAME = "MLflow store"
ELSEWHERE = "give tracking.uri=sqlite:////another/folder/mlflow.db"


def store() -> Iterator[Finding]:
    """Look at the store of this folder, or of MLFLOW_TRACKING_URI; nothing is created."""
    uri = default_uri()
    file, shown = _local(uri), hide_password(uri)
    if file is not None and not file.exists():
        yield _to_be_made(shown, file)
    elif file is not None and not os.access(file, os.W_OK):
        fix = f"chmod u+w {file}, or {ELSEWHERE}"
        yield Finding(NAME, "broken", f"{shown} cannot be written", True, fix)
    else:
        yield _opened(uri, shown)


def _opened(uri: str, shown: str) -> Finding:
    detail = f"{shown} opens, its schema is that of MLflow {mlflow.__version__}"
    try:
        client = open_store(uri)
        if uri.partition(":")[0] in REMOTE:
            client.search_experiments(max_results=1)
            detail = f"{shown} answers"
    except UserError as error:
        fix = ELSEWHERE if error.fix in (None, FIX_MISSING) else error.fix
        return Finding(NAME, "broken", f"{shown}: {error.what}", True, fix)
    except MlflowException as error:
        fix = f"start the server, or {ELSEWHERE}"
        reason = told(error).replace(uri, shown)[:300]
        return Finding(NAME, "broken", f"{shown}: {reason}", True, fix)
    return Finding(NAME, "ok", detail, needed=True)


def _local(uri: str) -> Path | None:
    """Return the file or folder of a local store."""
    if uri.startswith("sqlite:///"):
        return Path(uri.removeprefix("sqlite:///"))
    if uri in REMOTE or ("://" in uri and not uri.startswith("file:")):
        return None
    return Path(local_file_uri_to_path(uri))


def _to_be_made(uri: str, file: Path) -> Finding:
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not os.access(folder, os.W_OK):
        detail = f"{uri} does not exist, and {folder} cannot be written"
        return Finding(NAME, "broken", detail, True, ELSEWHERE)
    return Finding(NAME, "ok", f"{uri} will be made by the first run", needed=True)
