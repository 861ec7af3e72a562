"""Dates of reviews as sites write them: 2009-03-07, 07.03.2009, 7 марта 2009 | 14:55."""

from __future__ import annotations

import re
from datetime import date

import numpy as np
import pandas as pd

from kinopoisk_ft.data.cleaning import shown
from kinopoisk_ft.errors import UserError

_MONTHS = ("янв", "фев", "мар", "апр", "ма", "июн", "июл", "авг", "сен", "окт", "ноя", "дек")
_ISO = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})(?:[T ].*)?")
_DOTTED = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?:\D.*)?")
_WRITTEN = re.compile(r"(\d{1,2})\s+([а-я]+)\s+(\d{4})(?:\D.*)?", re.IGNORECASE)


def parse_date(text: object) -> date | None:
    """Return the day that a text names, None where it names none; a time of day may follow."""
    if not isinstance(text, str):
        return None
    text = text.strip()
    try:
        if found := _ISO.fullmatch(text):
            year, month, day = map(int, found.groups())
            return date(year, month, day)
        if found := _DOTTED.fullmatch(text):
            day, month, year = map(int, found.groups())
            return date(year, month, day)
        if found := _WRITTEN.fullmatch(text):
            name = found[2].lower()
            # "ма" stands for "мая", so "март" has to be looked for first: it comes first.
            month = next((i for i, m in enumerate(_MONTHS, 1) if name.startswith(m)), 0)
            return date(int(found[3]), month, int(found[1]))
    except ValueError:  # a 31st of February, or a word that is no month
        return None
    return None


def days(frame: pd.DataFrame) -> np.ndarray:
    """Return the column `date` as day numbers (N,); raises UserError that names unreadable ones."""
    found = [parse_date(value) for value in frame["date"]]
    wrong = np.array([day is None for day in found])
    if wrong.any():
        value = frame.loc[wrong, "date"].iloc[0]
        raise UserError(
            f"{wrong.sum():,} of {len(frame):,} rows have no date that can be read, as {value!r}",
            where=shown(frame.loc[wrong, "place"]),
            fix="write dates as 2009-03-07, or choose another data.split",
        )
    return np.array([day.toordinal() for day in found if day is not None], dtype=np.int64)
