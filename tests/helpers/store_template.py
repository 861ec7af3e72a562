"""Create MLflow's tables once and copy them, because 50 migrations take a second per new store.

Each file of a migration is read once, although all are listed when a store is opened. SQLite does
not wait for the disk, either: only a power cut could lose data.
"""

from __future__ import annotations

import functools
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import mlflow.store.db.utils as db
import pytest
from alembic.util import pyfiles
from sqlalchemy import Engine, event

# The functions of MLflow and Alembic.
create_tables = db._initialize_tables
load_file = pyfiles.load_module_py


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

    once = functools.cache(load_file)

    def load(name: str, file: str | Path) -> ModuleType:
        # This file is a script, which runs the migrations.
        return (load_file if Path(file).name == "env.py" else once)(name, file)

    def hurry(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(db, "_initialize_tables", copy)
            patch.setattr(pyfiles, "load_module_py", load)
            yield
    finally:
        event.remove(Engine, "connect", hurry)
