"""Find reviews that are in the data twice or more, with small changes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from kinopoisk_ft.data.splits import linked
from kinopoisk_ft.text import normalize_nfc, to_one_line

log = logging.getLogger(__name__)

LETTERS = 120  # longer than any phrase that two reviews share by chance
SHARE = 0.01  # of all rows: the log shows examples if more are dropped
_EXAMPLES = 3
_EXCERPT = 60  # characters
_NO_LETTER = re.compile(r"[\W_]+")


def fold_text(text: str) -> str:
    """Return the letters and digits of a text in lower case, ё as е."""
    return _NO_LETTER.sub("", text.casefold()).replace("ё", "е")


def near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Return group numbers (N,): texts with the same first or the same last 120 letters.

    A text of fewer letters is compared as a whole with its signs, marks and emoji, which can make
    all the difference: "Фильм :)" and "Фильм :(", "10/10" and "1010".
    """
    found = [ends(text) for text in texts]
    return linked([head for head, _ in found], [tail for _, tail in found])


def ends(text: str) -> tuple[str | None, str | None]:
    """Return the first and the last 120 letters of a text.

    A text of fewer letters is both, in lower case, with ё as е and white space as one space; None
    if it is blank.
    """
    head = _folded(text, _head)
    if head is None or len(head) < LETTERS:
        whole = " ".join(normalize_nfc(text).casefold().replace("ё", "е").split()) or None
        return whole, whole
    return head, _folded(text, _tail)


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

    Log examples if more than SHARE of the rows are dropped. Returns the frame, and the numbers
    dropped for either reason.
    """
    groups = pd.Series(near_duplicates(frame["text"].tolist()), index=frame.index)
    conflicting = frame["label"].groupby(groups).transform("nunique") > 1
    repeated = groups.duplicated() & ~conflicting
    counts = {
        "dropped_conflicting_duplicates": int(conflicting.sum()),
        "dropped_near_duplicates": int(repeated.sum()),
    }
    dropped = conflicting | repeated
    if dropped.sum() > SHARE * len(frame):
        examples = [*groups[conflicting].unique(), *groups[repeated].unique()][:_EXAMPLES]
        text = "%d of %d reviews are dropped as near-duplicates; data.near_duplicates=keep keeps "
        pairs = "".join(_pair(frame[groups == group]) for group in examples)
        log.warning(text + "all. Examples:%s", dropped.sum(), len(frame), pairs)
    return frame[~dropped], counts


def _pair(rows: pd.DataFrame) -> str:
    """Return two near-duplicates as lines of text, with different labels if there are any."""
    differ = rows["label"] != rows["label"].iloc[0]
    pair = pd.concat([rows.iloc[:1], (rows[differ] if differ.any() else rows.iloc[1:]).iloc[:1]])
    places = pair.get("place", pair.index.to_series())
    lines = zip(places, pair["label"], pair["text"].map(_excerpt), strict=True)
    return "".join(f"\n  {place}, {label}: {text}" for place, label, text in lines)


def _excerpt(text: str) -> str:
    line = to_one_line(text)
    return line if len(line) <= _EXCERPT else f"{line[: _EXCERPT // 2]} … {line[-_EXCERPT // 2 :]}"
