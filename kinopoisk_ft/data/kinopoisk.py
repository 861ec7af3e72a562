"""Reviews of films from Kinopoisk, as `blinoff/kinopoisk` publishes them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd
from huggingface_hub import hf_hub_download

from kinopoisk_ft.data.cleaning import shown
from kinopoisk_ft.data.local import labelled_texts
from kinopoisk_ft.data.recipe import GRADES, DataRecipe
from kinopoisk_ft.data.tables import read_table
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.hub_access import access_hub

_HUB_FILE = "kinopoisk.jsonl"


@dataclass(kw_only=True)
class Kinopoisk(DataRecipe):
    """The published columns: content, grade3, movie_name, author, date, title, grade10.

    Args:
        path: a local copy, in any format that `read_table` knows; None fetches it from the hub.
        name: the data set on the hub.
        quoting: of a copy in .csv or .tsv, one of QUOTING.
    """

    path: str | None = None
    name: str = "blinoff/kinopoisk"
    quoting: str = "auto"

    def read(self) -> pd.DataFrame:
        table = read_table(self.path or self._download(), self.quoting)
        table = replace(table, frame=table.frame.rename(columns={"movie_name": "film"}))
        fix = "give a copy with the published columns, or data=file with your own"
        frame = labelled_texts(table, "content", "grade3", fix, self.split_column)
        unknown = frame[~frame["label"].isin(GRADES)]
        if len(unknown):
            raise UserError(
                f"{len(unknown):,} rows have an unknown grade3, as '{unknown['label'].iloc[0]}'",
                where=shown(unknown["place"]),
                fix=f"grade3 is one of {', '.join(GRADES)}; other labels are for data=file",
            )
        return frame

    def _download(self) -> str:
        fix = "give a local copy, data.path=<file>, or generated reviews, data=demo"
        with access_hub("data set", self.name, fix):
            return hf_hub_download(self.name, _HUB_FILE, repo_type="dataset")
