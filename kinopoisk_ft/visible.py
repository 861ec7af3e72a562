"""Texts from elsewhere, made fit for a terminal, a page or a table.

Names in a store, labels in a file and reviews may hold signs that a terminal obeys, or that turn
the direction of what is written after them (https://trojansource.codes).
"""

from __future__ import annotations

import re

# Controls but for tab and line feed, overrides of direction, halves of surrogate pairs.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t")


def visible(text: str) -> str:
    """Return the text with each sign that acts instead of being seen as U+FFFD; lines stay."""
    return _UNSEEN.sub("\ufffd", text)


def one_line(text: str) -> str:
    """Return what is visible of the text, without line breaks: fit for a name in a table."""
    return " ".join(visible(text).split())


def no_formula(value: object) -> object:
    """Return a cell that no spreadsheet computes: a text that begins as a formula gets a quote.

    For tables that people open. A table of data keeps its texts as they are, for programs.
    """
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value
