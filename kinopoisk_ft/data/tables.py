"""Read tables from disk.

The formats are .jsonl, .json, .csv, .tsv and .parquet. A .json file has one object per line. All
formats except .parquet may be compressed (.gz). Text is UTF-8, or UTF-16 or UTF-32 with a byte
order mark.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import pyarrow as pa

from kinopoisk_ft.data import formats
from kinopoisk_ft.data.cleaning import list_first
from kinopoisk_ft.errors import UserError, suggest_name
from kinopoisk_ft.text import normalize_nfc

# Maximum ratio of decompressed to compressed size of a .gz file. It is 3 to 5 for reviews.
MAX_EXPANSION = 100
# Decompressed size in bytes up to which the ratio is ignored.
MIN_BOMB_BYTES = 2**28
# All of these codecs remove the mark. utf-16 and utf-32 also read the byte order from it.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_TEXT = (".jsonl", ".json", *_DELIMITERS)
SUFFIXES = (*_TEXT, *(f"{suffix}.gz" for suffix in _TEXT), ".parquet")


@dataclass(frozen=True)
class Table:
    """The rows of a table file.

    Args:
        frame: the values as Python objects.
        lines: the line number of each row, from 1; None if the format has no lines.
        arrow: the same rows with the types of the Parquet file; None for other formats.
    """

    path: Path
    frame: pd.DataFrame
    lines: list[int] | None
    arrow: pa.Table | None = None

    def column(self, name: str, fix: str) -> pd.Series:
        """Return a column, with bytes decoded as UTF-8.

        Raises:
            UserError: the column is missing, or contains bytes that are not UTF-8.
        """
        if (own_name := self.find(name)) is not None:
            return self._decode_column(own_name)
        columns = [str(column) for column in self.frame.columns]
        raise UserError(
            f"there is no column '{name}': {suggest_name(name, columns)}",
            where=f"{self.path}, columns {', '.join(columns)}",
            fix=fix,
        )

    def find(self, name: str) -> str | None:
        """Return the exact name of a column; None if there is no such column.

        Leading and trailing white space and the Unicode normalization form are ignored.
        """
        if name in self.frame:
            return name
        wanted = normalize_nfc(name).strip()
        return next((str(n) for n in self.frame if normalize_nfc(str(n)).strip() == wanted), None)

    def _decode_column(self, name: str) -> pd.Series:
        values, wrong = self.frame[name].copy(), []
        for row, value in enumerate(values):
            if isinstance(value, bytes):
                try:
                    values[row] = value.decode()
                except UnicodeDecodeError:
                    wrong.append(row)
        if wrong:
            places = self.places()
            raise UserError(
                f"{len(wrong):,} of {len(values):,} rows of the column '{name}' contain bytes that "
                "are not UTF-8",
                where=list_first(places[row] for row in wrong),
                fix="store the column as strings, or as bytes in UTF-8",
            )
        return values

    def places(self) -> list[str]:
        """Return "path:line" or "path row N" for each row, for messages.

        Lines are counted from 1, rows from 0.
        """
        if self.lines is not None:
            return [f"{self.path}:{line}" for line in self.lines]
        return [f"{self.path} row {row}" for row in range(len(self.frame))]


def read_table(path: str | Path, quoting: str = "auto") -> Table:
    """Read a table in the format that the file extension indicates.

    Args:
        quoting: how to read quotes in .csv and .tsv files, one of QUOTING.

    Raises:
        UserError: the file cannot be read completely, or has no rows.
    """
    # Unlike `Path.expanduser`, this accepts the name of an unknown user, such as "~nobody".
    path = Path(os.path.expanduser(path))
    data = _read_bytes(path)
    suffix = find_suffix(path)
    if suffix.endswith(".gz"):
        data = _decompress(data, path)
        suffix = suffix.removesuffix(".gz")
    if not data or data.isspace():
        raise UserError("the file is empty", where=str(path), fix="use a file with reviews")
    if suffix == ".parquet":
        arrow, frame = formats.parse_parquet(data, path)
        table = Table(path, frame, None, arrow)
    else:
        text = _decode(data, path)
        if delimiter := _DELIMITERS.get(suffix):
            columns, lines = formats.parse_separated(text, path, delimiter, quoting)
        else:
            columns, lines = formats.parse_json_lines(text, path)
        # pandas would infer other types, for example float64 for integers with missing values.
        table = Table(path, pd.DataFrame(columns, dtype=object), lines)
    if table.frame.empty:
        raise UserError("the file has no rows", where=str(path), fix="use a file with reviews")
    return table


def read_lines(path: Path, stream: BinaryIO | None = None) -> Table:
    """Read a file that has one text per line; return a table with the column `text`.

    Blank lines contain no text and are skipped.

    Args:
        stream: a stream to read instead of the file, for example the standard input.

    Raises:
        UserError: the file cannot be read, or has no text.
    """
    data = stream.read() if stream else _read_bytes(path)
    lines = [
        (number, line)
        # `splitlines` would also split at characters such as U+2028, which a text can contain.
        for number, line in enumerate(re.split(r"\r\n|\r|\n", _decode(data, path)), start=1)
        if line.strip()
    ]
    if not lines:
        raise UserError("there is no text", where=str(path), fix="write one text per line")
    frame = pd.DataFrame({"text": [line for _, line in lines]}, dtype=object)
    return Table(path, frame, [number for number, _ in lines])


def find_suffix(path: Path) -> str:
    """Return the extension of a table file in lower case, for example ".csv" or ".csv.gz".

    Raises:
        UserError: the extension is not in SUFFIXES.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])
    if suffix not in SUFFIXES:
        raise UserError(
            f"the file extension of '{path.name}' is not supported",
            where=str(path.absolute()),
            fix="use a file that ends in " + ", ".join(SUFFIXES),
        )
    return suffix


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        fix = "check the path, which is relative to the folder in which you ran the command"
        raise UserError("the file does not exist", where=str(path.absolute()), fix=fix) from error
    except OSError as error:
        raise UserError(
            f"the file cannot be read: {error.strerror}",
            where=str(path.absolute()),
            fix="use a file that you have permission to read",
        ) from error


def _decompress(data: bytes, path: Path) -> bytes:
    # The limit stops a decompression bomb before it fills the memory.
    limit = max(MIN_BOMB_BYTES, len(data) * MAX_EXPANSION)
    try:
        with gzip.open(io.BytesIO(data)) as stream:
            # One byte more than the limit is enough to see that the file is too large.
            unpacked = stream.read(limit + 1)
        if len(unpacked) > limit:
            raise UserError(
                f"the file is more than {MAX_EXPANSION} times larger after decompression, which is "
                "not plausible for text",
                where=str(path),
                fix="if you trust the file, decompress it and use the decompressed file",
            )
        return unpacked
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"the gzip file is damaged or incomplete: {error}",
            where=str(path),
            fix="copy or download the file again",
        ) from error


def _decode(data: bytes, path: Path) -> str:
    # UTF-32 is tested before UTF-16, because the UTF-16 mark is a prefix of the UTF-32 mark.
    marks = (mark for mark in _BYTE_ORDER_MARKS if data.startswith(mark))
    encoding = _BYTE_ORDER_MARKS.get(next(marks, b""), "utf-8")
    # In UTF-16 and UTF-32, characters such as "{" and Latin letters contain zero bytes.
    if encoding == "utf-8" and b"\0" in data[:2]:
        raise UserError(
            "the file is probably UTF-16 or UTF-32 without a byte order mark",
            where=str(path),
            fix="save the file as UTF-8 (iconv -f utf-16le -t utf-8)",
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        # Newlines are counted after decoding, because they have several bytes in UTF-16.
        before = data[: error.start].decode(encoding, errors="ignore")
        fix = "save the file as UTF-8"
        # Each gzip file starts with these two bytes (RFC 1952).
        if data.startswith(b"\x1f\x8b"):
            fix = "append .gz to the file name, because the file is compressed"
        elif encoding == "utf-8":
            fix += " (from Windows Cyrillic: iconv -f cp1251 -t utf-8)"
        raise UserError(
            f"the file is not {encoding.upper().removesuffix('-SIG')}: {error.reason}, byte "
            f"0x{data[error.start]:02x}",
            where=f"{path}:{before.count(chr(10)) + 1}",
            fix=fix,
        ) from error
