"""Load tables from a data set on the Hugging Face Hub, without running code from the Hub."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from kinopoisk_ft.data.local import LabelledTables
from kinopoisk_ft.data.tables import SUFFIXES, Table, find_suffix, read_table
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub_access import access_hub

# Metadata files that the library `datasets` writes next to tables.
_NOT_TABLES = ["dataset_info*.json", "*/dataset_info*.json"]


@dataclass(kw_only=True)
class HubDataset(LabelledTables):
    """A data set on the Hugging Face Hub (data=hub).

    All tables are concatenated. Splits that the data set defines are ignored.

    Args:
        name: id of the data set, "owner/name".
        subset: folder in the data set; if None, all folders are read.
        files: file name pattern, for example "*train*"; if None, all tables are read.
        revision: branch, tag or commit; if None, the main branch is read.
    """

    name: str | None = None
    subset: str | None = None
    files: str | None = None
    revision: str | None = None

    def tables(self) -> Iterable[Table]:
        if self.name is None:
            fix = "set data.name=<owner/name>"
            raise UserError("data=hub needs the name of a data set", where="data.name", fix=fix)
        # In these patterns, * also matches "/", so "*.csv" finds the tables in all folders.
        patterns = [self.files] if self.files else [f"*{suffix}" for suffix in SUFFIXES]
        if self.subset:
            patterns = [f"{self.subset}/{pattern}" for pattern in patterns]
        fix = "download the data set and read it with data=file data.path=<file>"
        with access_hub("data set", self.name, fix):
            folder = Path(
                snapshot_download(
                    self.name,
                    repo_type="dataset",
                    revision=self.revision,
                    allow_patterns=patterns,
                    ignore_patterns=_NOT_TABLES,
                )
            )
        # The folder may also contain files that an earlier run downloaded with other patterns.
        # `rglob` returns files in any order, but the row numbers and the split depend on it.
        paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        chosen = list(
            filter_repo_objects(
                paths, allow_patterns=patterns, ignore_patterns=_NOT_TABLES, key=Path.as_posix
            )
        )
        self._check_formats(chosen, patterns)
        return [read_table(folder / path, self.quoting) for path in chosen]

    def _check_formats(self, chosen: list[Path], patterns: list[str]) -> None:
        formats = sorted({find_suffix(path) for path in chosen})
        if not formats:
            raise UserError(
                f"data set '{self.name}' has no table that matches {' or '.join(patterns)}",
                where="data.subset and data.files",
                fix="choose a folder and a file name pattern that exist in the data set",
            )
        # Tables in different formats are probably copies of the same data.
        if len(formats) > 1:
            raise UserError(
                f"data set '{self.name}' has tables in several formats: {', '.join(formats)}",
                where="data.files",
                fix=f"choose one format, for example data.files='*{formats[0]}'",
            )
