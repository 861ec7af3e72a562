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

# Letters compared at each end of a text: longer than any phrase that two reviews share by chance.
MATCHED_LETTERS = 120
# Share of rows. If more rows are dropped, a warning shows examples.
WARNING_SHARE = 0.01
_MAX_EXAMPLES = 3
# Length of an example in characters.
_MAX_EXCERPT = 60
_NO_LETTER = re.compile(r"[\W_]+")


def fold_text(text: str) -> str:
    """Keep the letters and digits of a text, in lower case and with ё replaced by е."""
    return _NO_LETTER.sub("", text.casefold()).replace("ё", "е")


def group_near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Group texts with the same first or the same last 120 letters.

    Shorter texts are compared as a whole, with punctuation and emoji, because these can reverse
    the meaning: "Фильм :)" and "Фильм :(", "10/10" and "1010".

    Returns:
        Group numbers (N,).
    """
    keys = [compute_match_keys(text) for text in texts]
    return group_linked_rows([head for head, _ in keys], [tail for _, tail in keys])


def compute_match_keys(text: str) -> tuple[str | None, str | None]:
    """Compute the two keys by which near-duplicates are found: the first and last 120 letters.

    For a text of fewer letters, both keys are the whole text in lower case, with ё replaced by е
    and each run of white space by one space. For a blank text, both are None.
    """
    head = _fold_end(text, _take_head)
    # NFC makes "й" one character, however the text encodes it.
    if head is None or len(head) < MATCHED_LETTERS:
        whole = " ".join(normalize_nfc(text).casefold().replace("ё", "е").split()) or None
        return whole, whole
    return head, _fold_end(text, _take_tail)


def _take_head(text: str, characters: int) -> str:
    return text[:characters]


def _take_tail(text: str, characters: int) -> str:
    return text[-characters:]


def _fold_end(text: str, take: Callable[[str, int], str]) -> str | None:
    """Fold one end of a text to 120 letters (fewer if the text has fewer; None if it has none)."""
    # For most texts, 360 characters contain 120 letters, so the whole text need not be folded.
    letters = fold_text(take(text, 3 * MATCHED_LETTERS))
    if len(letters) < MATCHED_LETTERS:
        letters = fold_text(text)
    return take(letters, MATCHED_LETTERS) or None


def drop_near_duplicates(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Drop near-duplicates.

    Of a group with one label the first row stays. A group with different labels is dropped
    entirely. If more than WARNING_SHARE of the rows are dropped, a warning shows examples.

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
            "dropped %d of %d reviews as near-duplicates; data.near_duplicates=keep keeps them. "
            "Examples:%s",
            dropped.sum(),
            len(frame),
            "".join(_format_pair(frame[groups == group]) for group in examples),
        )
    return frame[~dropped], counts


def _format_pair(rows: pd.DataFrame) -> str:
    """Format two near-duplicates as lines of text, with different labels if there are any."""
    differ = rows["label"] != rows["label"].iloc[0]
    pair = pd.concat([rows.iloc[:1], (rows[differ] if differ.any() else rows.iloc[1:]).iloc[:1]])
    places = pair.get("place", pair.index.to_series())
    lines = zip(places, pair["label"], pair["text"].map(_shorten), strict=True)
    return "".join(f"\n  {place}, {label}: {text}" for place, label, text in lines)


def _shorten(text: str) -> str:
    line = to_one_line(text)
    half = _MAX_EXCERPT // 2
    return line if len(line) <= _MAX_EXCERPT else f"{line[:half]} … {line[-half:]}"
