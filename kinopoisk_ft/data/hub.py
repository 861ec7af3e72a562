"""Any data set of tables on the Hugging Face hub; no code of a data set is ever run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import snapshot_download

from kinopoisk_ft.data.local import LabelledTables
from kinopoisk_ft.data.tables import SUFFIXES, Table, read_table, table_suffix
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub_access import access_hub

_NOT_TABLES = ["dataset_info*.json", "*/dataset_info*.json"]  # what `datasets` keeps beside tables


@dataclass(kw_only=True)
class HubDataset(LabelledTables):
    """The tables of a data set, all its own splits together: this project makes the split.

    Args:
        name: of the data set, "owner/name".
        subset: a folder of the data set, where it has several; None takes all folders.
        files: a pattern of the file names in it ("*train*"); None takes every table.
        revision: branch, tag or commit; None takes main.
    """

    name: str | None = None
    subset: str | None = None
    files: str | None = None
    revision: str | None = None

    def tables(self) -> Iterable[Table]:
        if self.name is None:
            fix = "give data.name=<owner/name>"
            raise UserError("data=hub needs the name of a data set", where="data.name", fix=fix)
        patterns = [self.files] if self.files else [f"*{suffix}" for suffix in SUFFIXES]
        if self.subset:
            patterns = [f"{self.subset}/{pattern}" for pattern in patterns]
        fix = "download the data set and give it as data=file data.path=<file>"
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
        # An earlier run may have put there more than this one asked for.
        paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        chosen = [p for p in paths if _matches(p, patterns) and not _matches(p, _NOT_TABLES)]
        self._refuse_doubtful(chosen, patterns)
        return [read_table(folder / path, self.quoting) for path in chosen]

    def _refuse_doubtful(self, chosen: list[Path], patterns: list[str]) -> None:
        """Raise UserError on no table, and on several formats, which may be copies of one."""
        formats = sorted({table_suffix(path) for path in chosen})
        if not formats:
            raise UserError(
                f"data set '{self.name}' has no table named {' or '.join(patterns)}",
                where="data.subset and data.files",
                fix="name a folder and a pattern of files that it has",
            )
        if len(formats) > 1:
            raise UserError(
                f"data set '{self.name}' has tables in several formats: {', '.join(formats)}",
                where="data.files",
                fix=f"choose one, as data.files='*{formats[0]}'",
            )


def _matches(path: Path, patterns: list[str]) -> bool:
    return any(fnmatchcase(path.as_posix(), pattern) for pattern in patterns)
