"""Make strings safe for a terminal, an HTML page or a spreadsheet, and normalize names.

Run names, labels and reviews may contain control characters. A terminal executes some of these
characters. Others reverse the direction of the text after them (https://trojansource.codes).
"""

from __future__ import annotations

import csv
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

# Control characters except tab and line feed, direction overrides, and lone surrogates.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
# An absolute path, or one that leaves the working directory, in a value such as `[/data/a.csv]`.
# The slash of "owner/name" and of "https://" does not begin a path.
_PATH = re.compile(r"""(?<![\w.:/\\~-])(?:file://|sqlite:///)?(?:\.\.|~[^/\\"',]*|[A-Za-z]:)?[/\\]
                   [^"',\[\]{}]*""", re.VERBOSE)  # fmt: skip


# The password in `scheme://user:password@host` or in `?password=…`. SQLAlchemy also accepts slashes
# and spaces in the password of a database. In a web address, a slash ends the host and port.
_PASSWORD = re.compile(
    r"""(?: (https?://[^\s/:@]*:) [^\s/]*
          | ((?<!http)(?<!https)://[^\s/:@]*:) [^@]*(?:@[^\s/?@]*)* ) (?=@)
        | ([?&](?:password|pwd)=) [^\s&]+""",
    re.IGNORECASE | re.VERBOSE,
)


def hide_password(text: str) -> str:
    """Replace the password in each URI of a text with asterisks."""
    return _PASSWORD.sub(lambda match: f"{match[1] or match[2] or match[3]}***", text)


def replace_controls(text: str) -> str:
    """Replace control characters with U+FFFD, except tabs and line feeds."""
    return _CONTROLS.sub("\ufffd", text)


def to_one_line(text: str) -> str:
    """Replace control characters with U+FFFD, and consecutive white space with a space."""
    return " ".join(replace_controls(text).split())


def shorten_paths(value: str) -> str:
    """Replace each absolute path in a value by its last part, to hide the user's folders.

    A space is read as a part of a path. Therefore, call this function for each argument of a
    command separately.
    """
    return _PATH.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\ "))[-1], value)


def escape_formula(value: object) -> object:
    """Prefix a string with an apostrophe if a spreadsheet would evaluate the string as a formula.

    Use this for tables that people open in a spreadsheet, not for data files.
    Source: https://owasp.org/www-community/attacks/CSV_Injection
    """
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value


def format_csv(rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """Yield each row as a line of CSV that ends in a line feed. None becomes an empty cell."""
    # The writer of Python 3.11 quotes only those line breaks that are in its line terminator, so
    # "\n" would leave a carriage return unquoted. `writerow` returns what `write` returns.
    stream: Any = SimpleNamespace(write=str)
    writer = csv.writer(stream, lineterminator="\r\n")
    for row in rows:
        yield writer.writerow(row).removesuffix("\r\n") + "\n"


# Matches "(2009)" and "[сериал, 2009–2011]". A number without brackets may be the title: "1408".
_YEAR = re.compile(r"[(\[][^()\[\]]*\b(?:18|19|20)\d\d\b[^()\[\]]*[)\]]\s*$")
_QUOTES = re.compile(r"[\"'`«»“”„‘’]+")

# Numbers as Python, pandas and JSON write them; "007" and "1e3" are therefore names.
_NUMBER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:e[+-][0-9]{2,3})?")


def clean_name(value: Any) -> str | None:
    """Normalize the name of a class, film or author.

    Strip white space at both ends and convert to Unicode form NFC. A number becomes the same string
    in all file formats: 1, 1.0 and "1.0" become "1". Blank strings, missing values, NaN and
    infinity become None.
    """
    # Convert NumPy scalars to Python numbers.
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    name = normalize_nfc(str(value)).strip()
    return format_decimal(name) if is_number(name) else name or None


def normalize_nfc(text: str) -> str:
    """Convert a string to Unicode form NFC, in which й is one character."""
    # Most strings are already in this form, and the check is faster than the conversion.
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def is_number(text: str) -> bool:
    """Return whether a string is a number in the notation of Python, pandas or JSON."""
    return _NUMBER.fullmatch(text) is not None


def format_decimal(text: str) -> str:
    """Write a number in decimal notation: "1e+02" becomes "100", and "1.50" becomes "1.5"."""
    # Unlike float, Decimal keeps all digits of a long number.
    written = f"{Decimal(text):f}"
    if "." in written:
        written = written.rstrip("0").rstrip(".")
    return "0" if written == "-0" else written.removeprefix("+")


def fold_name(name: object) -> str | None:
    """Normalize the name of a film or author for comparison.

    Case, white space, quotes and a final year in brackets are ignored, and ё equals е. Remakes
    with the same title therefore count as one film. A blank name becomes None.
    """
    if not isinstance(name, str):
        return None
    # NFKC comes first, because it joins the letter е and a combining diaeresis to ё.
    folded = unicodedata.normalize("NFKC", name).casefold().replace("ё", "е")
    folded = " ".join(_QUOTES.sub("", _YEAR.sub("", folded)).split())
    return folded or None
