"""Reviews that stand in the data twice or more, with small changes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from kinopoisk_ft.data.groups import linked

log = logging.getLogger(__name__)

LETTERS = 120  # longer than any phrase that two reviews share by chance
_NO_LETTER = re.compile(r"[\W_]+")


def fold_text(text: str) -> str:
    """Return the letters and digits of a text in lower case, ё as е."""
    return _NO_LETTER.sub("", text.casefold()).replace("ё", "е")


def near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Return group numbers (N,): texts whose first or whose last 120 letters are the same.

    A text of fewer letters is compared as a whole; one without letters is like no other.
    """
    found = [ends(text) for text in texts]
    return linked([head for head, _ in found], [tail for _, tail in found])


def ends(text: str) -> tuple[str | None, str | None]:
    """Return the first and the last 120 letters of a text, None of one without letters."""
    return _folded(text, _head), _folded(text, _tail)


def _head(text: str, characters: int) -> str:
    return text[:characters]


def _tail(text: str, characters: int) -> str:
    return text[-characters:]


def _folded(text: str, end: Callable[[str, int], str]) -> str | None:
    """Return 120 letters of an end, fewer only of a text without more, None if it has none.

    Folding goes letter by letter, so that most texts need not be folded as a whole.
    """
    letters = fold_text(end(text, 3 * LETTERS))
    if len(letters) < LETTERS:
        letters = fold_text(text)
    return end(letters, LETTERS) or None


def drop_near_duplicates(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Keep the first row of each group whose labels agree, and no row of one whose labels differ.

    Returns the frame, and the numbers dropped for either reason.
    """
    groups = pd.Series(near_duplicates(frame["text"].tolist()), index=frame.index)
    conflicting = frame["label"].groupby(groups).transform("nunique") > 1
    repeated = groups.duplicated() & ~conflicting
    counts = {
        "dropped_conflicting_duplicates": int(conflicting.sum()),
        "dropped_near_duplicates": int(repeated.sum()),
    }
    return frame[~conflicting & ~repeated], counts
