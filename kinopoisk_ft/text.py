"""Make texts safe for a terminal, a page or a spreadsheet, and normalize names.

Names in a store, labels in a file and reviews may contain control characters that a terminal
executes, or that reverse the direction of the text after them (https://trojansource.codes).
"""

from __future__ import annotations

import math
import re
import unicodedata
from decimal import Decimal
from typing import Any

# Control characters except tab and line feed, direction overrides, and lone surrogates.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t")


def replace_controls(text: str) -> str:
    """Replace each control character with U+FFFD; tabs and line feeds stay."""
    return _CONTROLS.sub("\ufffd", text)


def to_one_line(text: str) -> str:
    """Replace control characters, and each run of white space with one space."""
    return " ".join(replace_controls(text).split())


def escape_formula(value: object) -> object:
    """Put a quote before a text that a spreadsheet would evaluate as a formula.

    Use this for tables that people open. Data files for programs keep their texts unchanged.
    Source: https://owasp.org/www-community/attacks/CSV_Injection
    """
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value


# Matches "(2009)" and "[сериал, 2009–2011]". A number without brackets may be the title: "1408".
_YEAR = re.compile(r"[(\[][^()\[\]]*\b(?:18|19|20)\d\d\b[^()\[\]]*[)\]]\s*$")
_QUOTES = re.compile(r"[\"'`«»“”„‘’]+")

# Numbers as Python, pandas and JSON write them. "007" and "1e3" are names.
_NUMBER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:e[+-][0-9]{2,3})?")


def clean_name(value: Any) -> str | None:
    """Return a class, film or author name, stripped and in Unicode form NFC.

    Each number has one spelling, whatever the file format: 1, 1.0 and "1.0" become "1". Blank
    texts, missing values, NaN and infinity become None.
    """
    # NumPy scalars become Python numbers.
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    name = normalize_nfc(str(value)).strip()
    return format_decimal(name) if is_number(name) else name or None


def normalize_nfc(text: str) -> str:
    """Return a text in Unicode form NFC, which has й as one character, not as и and a breve."""
    # Most texts are already in this form, and the test is faster than the conversion.
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def is_number(text: str) -> bool:
    """Return whether a text is a number in the notation of Python, pandas or JSON."""
    return _NUMBER.fullmatch(text) is not None


def format_decimal(text: str) -> str:
    """Write a number in decimal notation, without trailing zeros after the decimal point."""
    written = f"{Decimal(text):f}"
    if "." in written:
        written = written.rstrip("0").rstrip(".")
    return "0" if written == "-0" else written.removeprefix("+")


def fold_name(name: object) -> str | None:
    """Normalize the name of a film or author for comparison; return None for a blank name.

    The result ignores case, white space, quotes, a final year in brackets, and the difference
    between ё and е. Remakes with one title count as one film, which can only make a split stricter.
    """
    if not isinstance(name, str):
        return None
    folded = unicodedata.normalize("NFKC", name).casefold().replace("ё", "е")
    folded = " ".join(_QUOTES.sub("", _YEAR.sub("", folded)).split())
    return folded or None
