"""Find near-duplicates: reviews that occur several times in the data with small changes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from kinopoisk_ft.data.splits import group_linked_rows
from kinopoisk_ft.text import normalize_nfc, to_one_line

log = logging.getLogger(__name__)

# Number of letters compared at each end of a text, more than two reviews have in common by chance.
MATCHED_LETTERS = 120
# Fraction of the rows. If more rows are dropped, a warning shows examples.
WARNING_SHARE = 0.01
_MAX_EXAMPLES = 3
# Maximum length of an example in characters.
_MAX_EXCERPT = 60
_NO_LETTER = re.compile(r"[\W_]+")


def fold_text(text: str) -> str:
    """Remove everything but letters and digits, convert to lower case, and replace ё with е."""
    return _NO_LETTER.sub("", text.casefold()).replace("ё", "е")


def group_near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Group texts whose first 120 letters or last 120 letters are equal.

    Shorter texts are compared as a whole, including punctuation and emoji, because these can
    reverse the meaning: "Фильм :)" and "Фильм :(", "10/10" and "1010".

    Returns:
        The group number of each text, (N,).
    """
    keys = [compute_match_keys(text) for text in texts]
    return group_linked_rows([head for head, _ in keys], [tail for _, tail in keys])


def compute_match_keys(text: str) -> tuple[str | None, str | None]:
    """Return two keys to find near-duplicates: the first and the last 120 letters of a text.

    If a text has fewer letters, both keys are the whole text in lower case, with ё replaced with е
    and each run of white space replaced with one space. For a blank text, both keys are None.
    """
    head = _fold_end(text, _take_head)
    # NFC makes "й" one character, which a text can also encode as "и" and a combining breve.
    if head is None or len(head) < MATCHED_LETTERS:
        whole = " ".join(normalize_nfc(text).casefold().replace("ё", "е").split()) or None
        return whole, whole
    return head, _fold_end(text, _take_tail)


def _take_head(text: str, characters: int) -> str:
    return text[:characters]


def _take_tail(text: str, characters: int) -> str:
    return text[-characters:]


def _fold_end(text: str, take: Callable[[str, int], str]) -> str | None:
    """Return the first or last 120 letters of a text after `fold_text`; None if there are none.

    `take` is `_take_head` or `_take_tail`.
    """
    # In most texts, 360 characters contain 120 letters, so folding the whole text is not needed.
    letters = fold_text(take(text, 3 * MATCHED_LETTERS))
    if len(letters) < MATCHED_LETTERS:
        letters = fold_text(text)
    return take(letters, MATCHED_LETTERS) or None


def drop_near_duplicates(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Drop near-duplicates.

    If all rows of a group have the same label, the first row is kept. Otherwise, all rows of the
    group are dropped. A warning shows examples if more than WARNING_SHARE of the rows are dropped.

    Returns:
        The remaining rows, and the number of dropped rows by reason.
    """
    groups = pd.Series(group_near_duplicates(frame["text"].tolist()), index=frame.index)
    conflicting = frame["label"].groupby(groups).transform("nunique") > 1
    repeated = groups.duplicated() & ~conflicting
    counts = {
        "dropped_conflicting_duplicates": int(conflicting.sum()),
        "dropped_near_duplicates": int(repeated.sum()),
    }
    dropped = conflicting | repeated
    if dropped.sum() > WARNING_SHARE * len(frame):
        examples = [*groups[conflicting].unique(), *groups[repeated].unique()][:_MAX_EXAMPLES]
        log.warning(
            "dropped %d of %d reviews as near-duplicates; set data.near_duplicates=keep to keep "
            "them. Examples:%s",
            dropped.sum(),
            len(frame),
            "".join(_format_pair(frame[groups == group]) for group in examples),
        )
    return frame[~dropped], counts


def _format_pair(rows: pd.DataFrame) -> str:
    """Format two rows of a group as two lines, with different labels if the group has them."""
    differ = rows["label"] != rows["label"].iloc[0]
    pair = pd.concat([rows.iloc[:1], (rows[differ] if differ.any() else rows.iloc[1:]).iloc[:1]])
    places = pair.get("place", pair.index.to_series())
    lines = zip(places, pair["label"], pair["text"].map(_shorten), strict=True)
    return "".join(f"\n  {place}, {label}: {text}" for place, label, text in lines)


def _shorten(text: str) -> str:
    line = to_one_line(text)
    half = _MAX_EXCERPT // 2
    return line if len(line) <= _MAX_EXCERPT else f"{line[:half]} … {line[-half:]}"
