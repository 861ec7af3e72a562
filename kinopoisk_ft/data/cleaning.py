"""Texts as they are read: stray newlines and missing texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from kinopoisk_ft.errors import UserError

_HALF = re.compile("[\ud800-\udfff]")
_SHOWN = 5  # names in a message; more would hide what to do


def clean_text(text: str) -> str:
    """Strip one leading newline: the published reviews each start with it."""
    return text.removeprefix("\n")


def shown(names: Iterable[str]) -> str:
    """Return the first few names as one line, with the number of the others."""
    listed = list(names)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def has_half_a_pair(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which no file and no tokenizer takes."""
    return _HALF.search(text) is not None


def clean_texts(
    frame: pd.DataFrame, empty: str, clean: Callable[[str], str]
) -> tuple[pd.DataFrame, int]:
    """Return the rows with a text, cleaned, and the number of rows dropped.

    A text is missing when it is no string, or nothing but white space, once cleaned. With
    `empty="refuse"` such rows raise a UserError that names their places, as do texts that cannot
    be written in UTF-8.
    """
    halves = [isinstance(text, str) and has_half_a_pair(text) for text in frame["text"]]
    if any(halves):
        raise UserError(
            f"{sum(halves):,} of {len(frame):,} texts hold half of a surrogate pair",
            where=shown(frame.loc[halves, "place"]),
            fix="mend or remove these rows",
        )
    texts = [clean(text) if isinstance(text, str) else "" for text in frame["text"]]
    present = np.array([bool(text.strip()) for text in texts], dtype=bool)
    if empty == "refuse" and not present.all():
        places = frame.loc[~present, "place"]
        raise UserError(
            f"{len(places):,} of {len(frame):,} rows have no text",
            where=shown(places),
            fix="mend or remove these rows, or let data.empty=drop leave them out",
        )
    # As objects: pandas would copy long texts into its string type, at a second per 100 MB.
    frame = frame.assign(text=pd.Series(texts, index=frame.index, dtype=object))[present]
    return frame, int((~present).sum())
