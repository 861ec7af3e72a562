"""Find near-duplicates: copies of a review with small changes."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kinopoisk_ft.data.splits import group_linked_rows
from kinopoisk_ft.text import normalize_nfc, to_one_line

log = logging.getLogger(__name__)

# Number of letters that are compared at each end of a text. In practice, only copies have so many
# equal letters.
MATCHED_LETTERS = 120
# If more than this fraction of the rows is dropped, a warning shows examples.
WARNING_SHARE = 0.01
_MAX_EXAMPLES = 3
# Maximum length of an example in characters.
_MAX_EXCERPT = 60
# `\W` alone would keep the underscore, which is neither a letter nor a digit.
_NO_LETTER = re.compile(r"[\W_]+")


def fold_text(text: str) -> str:
    """Keep only letters and digits, convert to lower case, and replace ё with е."""
    # After `casefold`, there is no capital Ё, so one replacement is enough.
    return _NO_LETTER.sub("", text.casefold()).replace("ё", "е")


def group_near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Return the group number of each text, (N,); near-duplicates have the same number.

    In near-duplicates, the first 120 letters and digits are the same, or the last 120.

    Shorter texts are compared as a whole, with punctuation and emoji. In a short text, one
    character can reverse the meaning: "Фильм :)" and "Фильм :(".
    """
    keys = [compute_match_keys(text) for text in texts]
    return group_linked_rows([head for head, _ in keys], [tail for _, tail in keys])


def compute_match_keys(text: str) -> tuple[str | None, str | None]:
    """Return two keys of a text. Near-duplicates have an equal first or an equal second key.

    The keys are the first and the last 120 letters and digits. If the text has fewer, both keys are
    the whole text with normalized white space. Keys are in lower case, and ё is replaced with е.
    The keys of a blank text are None.
    """
    # NFC makes "й" one character, which a text can also encode as "и" and a combining breve. The
    # whole text is converted, because cutting it could separate the two.
    text = normalize_nfc(text)
    head = _fold_end(text, at_start=True)
    if head is None or len(head) < MATCHED_LETTERS:
        whole = " ".join(text.casefold().replace("ё", "е").split()) or None
        return whole, whole
    return head, _fold_end(text, at_start=False)


def _fold_end(text: str, at_start: bool) -> str | None:
    # In most texts, 360 characters contain 120 letters, so the whole text need not be folded.
    characters = 3 * MATCHED_LETTERS
    letters = fold_text(text[:characters] if at_start else text[-characters:])
    if len(letters) < MATCHED_LETTERS:
        letters = fold_text(text)
    return (letters[:MATCHED_LETTERS] if at_start else letters[-MATCHED_LETTERS:]) or None


def drop_near_duplicates(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Keep the first row of each near-duplicate group; drop groups with more than one label.

    If more than 1% of all rows are dropped, a warning shows examples.

    Returns:
        The remaining rows, and {reason: number of dropped rows}.
    """
    groups = pd.Series(group_near_duplicates(frame["text"].tolist()), index=frame.index)
    # It is unknown which of the labels is right, so all rows of the group are dropped.
    conflicting = frame["label"].groupby(groups).transform("nunique") > 1
    # `duplicated` is False for the first row of each group, so this row is kept.
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
    # If the labels differ, the second row of the example has another label than the first one.
    differ = rows["label"] != rows["label"].iloc[0]
    pair = pd.concat([rows.iloc[:1], (rows[differ] if differ.any() else rows.iloc[1:]).iloc[:1]])
    places = pair.get("place", pair.index.to_series())
    lines = zip(places, pair["label"], pair["text"].map(_shorten), strict=True)
    return "".join(f"\n  {place}, {label}: {text}" for place, label, text in lines)


def _shorten(text: str) -> str:
    line = to_one_line(text)
    # Both ends are shown, because near-duplicates may agree only at their start or at their end.
    half = _MAX_EXCERPT // 2
    return line if len(line) <= _MAX_EXCERPT else f"{line[:half]} … {line[-half:]}"
