"""Clean texts from elsewhere for a terminal, a page or a table, and compare names.

Names in a store, labels in a file and reviews may hold signs that a terminal obeys, or that turn
the direction of what is written after them (https://trojansource.codes).
"""

from __future__ import annotations

import math
import re
import unicodedata
from decimal import Decimal
from typing import Any

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


# "(2009)", "[сериал, 2009–2011]": a bare number may be the film's own, as of "1408".
_YEAR = re.compile(r"[(\[][^()\[\]]*\b(?:18|19|20)\d\d\b[^()\[\]]*[)\]]\s*$")
_MARKS = re.compile(r"[\"'`«»“”„‘’]+")

# As Python, pandas and JSON write numbers. "007" and "1e3" are names.
_NUMBER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:e[+-][0-9]{2,3})?")


def clean_name(value: Any) -> str | None:
    """Return a class, film or author as text: stripped, in Unicode form NFC; None where blank.

    Numbers are written in one way, whatever the format of the table: 1, 1.0 and "1.0" as "1". A
    missing value, NaN and infinity are None.
    """
    if hasattr(value, "tolist"):  # of NumPy
        value = value.tolist()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    name = nfc(str(value)).strip()
    return plain_number(name) if is_number(name) else name or None


def nfc(text: str) -> str:
    """Return a text in Unicode form NFC: й as one character, not as и and a breve."""
    # Most texts are in this form; to test that is faster than to convert.
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def is_number(text: str) -> bool:
    """Return whether a text is a number as programs write them."""
    return _NUMBER.fullmatch(text) is not None


def plain_number(text: str) -> str:
    """Return a number in decimal notation, without zeros at the end of a fraction."""
    written = f"{Decimal(text):f}"
    if "." in written:
        written = written.rstrip("0").rstrip(".")
    return "0" if written == "-0" else written.removeprefix("+")


def fold_name(name: object) -> str | None:
    """Return a name of a film or author as it is compared; None where there is none.

    Case, ё and е, white space, quotes and a year in brackets at the end count for nothing, so that
    remakes of one name are one film: that can only make a split stricter.
    """
    if not isinstance(name, str):
        return None
    folded = unicodedata.normalize("NFKC", name).casefold().replace("ё", "е")
    folded = " ".join(_MARKS.sub("", _YEAR.sub("", folded)).split())
    return folded or None
