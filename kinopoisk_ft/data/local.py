"""A local file of labelled texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kinopoisk_ft.data.files import SUFFIXES, Table, read_table
from kinopoisk_ft.data.labelled import LabelledTables
from kinopoisk_ft.errors import UserError


@dataclass(kw_only=True)
class LocalFile(LabelledTables):
    """One table on disk, in any format that `read_table` knows."""

    path: str | None = None

    def tables(self) -> Iterable[Table]:
        if self.path is None:
            fix = f"give data.path=<file>, one of {', '.join(SUFFIXES)}"
            raise UserError("data=file needs a file", where="data.path", fix=fix)
        yield read_table(self.path, self.quoting)
