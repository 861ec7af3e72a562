"""Load the Kinopoisk film reviews that are published on the Hub as `blinoff/kinopoisk`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd
from huggingface_hub import hf_hub_download

from kinopoisk_ft.data.cleaning import list_first
from kinopoisk_ft.data.local import read_labelled_texts
from kinopoisk_ft.data.recipe import GRADES, DataRecipe
from kinopoisk_ft.data.tables import read_table
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub_access import access_hub

_HUB_FILE = "kinopoisk.jsonl"


@dataclass(kw_only=True)
class Kinopoisk(DataRecipe):
    """The published film reviews (data=kinopoisk).

    The published columns are content, grade3, movie_name, author, date, title and grade10.

    Args:
        path: local copy in a format that `read_table` supports; if None, the data set is
            downloaded.
        name: id of the data set on the Hub.
        quoting: how to read quotes in a .csv or .tsv file, one of QUOTING.
    """

    path: str | None = None
    name: str = "blinoff/kinopoisk"
    quoting: str = "auto"

    def read(self) -> pd.DataFrame:
        table = read_table(self.path or self._download(), self.quoting)
        # The split by film and the measures of leakage expect the column name "film".
        table = replace(table, frame=table.frame.rename(columns={"movie_name": "film"}))
        fix = "use a copy with the published columns, or data=file for other columns"
        frame = read_labelled_texts(table, "content", "grade3", fix, self.split_column)
        # Without this check, rows with a misspelt grade would be dropped without an error.
        unknown = frame[~frame["label"].isin(GRADES)]
        if len(unknown):
            raise UserError(
                f"{len(unknown):,} rows have an unknown value in the column grade3, for example "
                f"'{unknown['label'].iloc[0]}'",
                where=list_first(unknown["place"]),
                fix=f"grade3 must be one of {', '.join(GRADES)}; use data=file for other labels",
            )
        return frame

    def _download(self) -> str:
        fix = "use a local copy with data.path=<file>, or the generated reviews with data=demo"
        with access_hub("data set", self.name, fix):
            return hf_hub_download(self.name, _HUB_FILE, repo_type="dataset")
