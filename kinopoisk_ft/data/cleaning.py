"""Clean texts, and find missing texts and invalid Unicode."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from kinopoisk_ft.errors import UserError

# An unpaired surrogate is half of a UTF-16 surrogate pair. It cannot be encoded as UTF-8.
_SURROGATE = re.compile("[\ud800-\udfff]")
# Maximum number of names in an error message. A longer list would hide the advice.
_MAX_LISTED = 5


def clean_text(text: str) -> str:
    """Strip one leading newline, because every published review starts with a newline."""
    return text.removeprefix("\n")


def list_first(names: Iterable[str]) -> str:
    """Return the first few names as text, for example "a, b, c, d, e and 3 more"."""
    listed = list(names)
    rest = len(listed) - _MAX_LISTED
    return ", ".join(listed[:_MAX_LISTED]) + (f" and {rest:,} more" if rest > 0 else "")


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text contains an unpaired surrogate."""
    return _SURROGATE.search(text) is not None


def clean_texts(
    frame: pd.DataFrame, empty: str, clean: Callable[[str], str]
) -> tuple[pd.DataFrame, int]:
    """Clean the texts and drop the rows without a text.

    A row has no text if the value is not a string, or if only white space remains after cleaning.

    Args:
        frame: frame with the columns text and place; see `Table.places`.
        empty: if "drop", rows without a text are dropped; if "refuse", they raise an error.
        clean: function that cleans one text.

    Returns:
        The remaining rows, and the number of dropped rows.

    Raises:
        UserError: a text contains an unpaired surrogate, or a row has no text and `empty` is
            "refuse".
    """
    damaged = [isinstance(text, str) and has_lone_surrogate(text) for text in frame["text"]]
    if any(damaged):
        raise UserError(
            f"{sum(damaged):,} of {len(frame):,} texts contain unpaired surrogates",
            where=list_first(frame.loc[damaged, "place"]),
            fix="remove these characters, which UTF-8 cannot encode, or remove these rows",
        )
    texts = [clean(text) if isinstance(text, str) else "" for text in frame["text"]]
    # `strip` only tests whether there is text. The remaining texts keep their white space.
    present = np.array([bool(text.strip()) for text in texts], dtype=bool)
    if empty == "refuse" and not present.all():
        places = frame.loc[~present, "place"]
        raise UserError(
            f"{len(places):,} of {len(frame):,} rows have no text",
            where=list_first(places),
            fix="correct or remove these rows, or set data.empty=drop to skip them",
        )
    # The dtype `object` avoids copying the texts to pandas' string type (1 s per 100 MB).
    frame = frame.assign(text=pd.Series(texts, index=frame.index, dtype=object))[present]
    return frame, int((~present).sum())
