"""What happens to a text before it is tokenized, the same in training and in prediction."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from kinopoisk_ft.errors import UserError

_SHOWN = 5  # names in a message; more would hide what to do


def clean_text(text: str) -> str:
    """Strip one leading newline: the published reviews each start with it."""
    return text.removeprefix("\n")


def shown(names: Iterable[str]) -> str:
    """Return the first few names as one line, with the number of the others."""
    listed = list(names)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def clean_texts(frame: pd.DataFrame, empty: str) -> tuple[pd.DataFrame, int]:
    """Return the rows with a text, cleaned, and the number of rows dropped.

    A text is missing when it is no string, or nothing but white space. With `empty="refuse"` such
    rows raise a UserError that names their places.
    """
    present = frame["text"].map(lambda text: isinstance(text, str) and bool(text.strip()))
    present = present.astype(bool)
    if empty == "refuse" and not present.all():
        places = frame.loc[~present, "place"]
        raise UserError(
            f"{len(places):,} of {len(frame):,} rows have no text",
            where=shown(places),
            fix="mend or remove these rows, or let data.empty=drop leave them out",
        )
    kept = frame[present]
    texts = [clean_text(text) for text in kept["text"]]
    # As objects: pandas would copy long texts into its string type, at a second per 100 MB.
    kept = kept.assign(text=pd.Series(texts, index=kept.index, dtype=object))
    return kept, int((~present).sum())
