"""Clean texts after reading: strip the leading newline, find missing and damaged texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from kinopoisk_ft.errors import UserError

# A lone surrogate is half of a UTF-16 pair. It cannot be encoded as UTF-8.
_SURROGATE = re.compile("[\ud800-\udfff]")
# Names in an error message. More of them would hide the sentence that says what to do.
_MAX_LISTED = 5


def clean_text(text: str) -> str:
    """Strip one leading newline, with which each of the published reviews starts."""
    return text.removeprefix("\n")


def list_first(names: Iterable[str]) -> str:
    """Join the first few names with commas and add the number of the remaining names."""
    listed = list(names)
    rest = len(listed) - _MAX_LISTED
    return ", ".join(listed[:_MAX_LISTED]) + (f" and {rest:,} more" if rest > 0 else "")


def has_lone_surrogate(text: str) -> bool:
    """Check for a lone surrogate, which neither UTF-8 files nor tokenizers accept."""
    return _SURROGATE.search(text) is not None


def clean_texts(
    frame: pd.DataFrame, empty: str, clean: Callable[[str], str]
) -> tuple[pd.DataFrame, int]:
    """Clean the texts and drop the rows whose text is missing.

    A text is missing if it is not a string, or if cleaning leaves only white space.

    Args:
        frame: columns text and place.
        empty: "drop" or "refuse" rows without a text.
        clean: function from text to cleaned text.

    Returns:
        The remaining rows, and the number of dropped rows.

    Raises:
        UserError: a text contains a lone surrogate; or, with `empty="refuse"`, a text is missing.
    """
    damaged = [isinstance(text, str) and has_lone_surrogate(text) for text in frame["text"]]
    if any(damaged):
        raise UserError(
            f"{sum(damaged):,} of {len(frame):,} texts contain half of a surrogate pair",
            where=list_first(frame.loc[damaged, "place"]),
            fix="correct or remove these rows",
        )
    texts = [clean(text) if isinstance(text, str) else "" for text in frame["text"]]
    present = np.array([bool(text.strip()) for text in texts], dtype=bool)
    if empty == "refuse" and not present.all():
        places = frame.loc[~present, "place"]
        raise UserError(
            f"{len(places):,} of {len(frame):,} rows have no text",
            where=list_first(places),
            fix="correct or remove these rows, or skip them with data.empty=drop",
        )
    # The type `object` avoids a copy of the texts into pandas' string type (1 s per 100 MB).
    frame = frame.assign(text=pd.Series(texts, index=frame.index, dtype=object))[present]
    return frame, int((~present).sum())
