"""Create MLflow's tables once and copy them, because 50 migrations take a second per new store.

SQLite does not wait for the disk, either: only a power cut could lose data.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow.store.db.utils as db
import pytest
from sqlalchemy import Engine, event

# MLflow's own function.
create_tables = db._initialize_tables


@contextmanager
def copied_stores(template: Path) -> Iterator[None]:
    """Let new SQLite stores of this process start as copies of the first one, `template`."""

    def copy(engine: Engine) -> None:
        name = engine.url.database
        if engine.dialect.name != "sqlite" or not name or name == ":memory:":
            create_tables(engine)
            return
        engine.dispose()
        if template.exists():
            shutil.copyfile(template, name)
            return
        create_tables(engine)
        engine.dispose()
        shutil.copyfile(name, template)

    def hurry(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(db, "_initialize_tables", copy)
            yield
    finally:
        event.remove(Engine, "connect", hurry)
