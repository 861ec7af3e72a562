"""Read tables from disk; errors name the line or row.

.jsonl .json (one object a line), .csv, .tsv, each also as .gz, and .parquet. Text is UTF-8, or
UTF-16 or UTF-32 with a byte order mark.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from kinopoisk_ft.data import formats
from kinopoisk_ft.data.cleaning import shown
from kinopoisk_ft.errors import UserError, suggest_name
from kinopoisk_ft.text import normalize_nfc

MOST_TIMES = 100  # what a file may grow when unpacked; reviews do by 3 to 5
LEAST_BOMB = 2**28  # bytes that any may grow to


@dataclass(frozen=True)
class Table:
    """The rows of a file.

    Args:
        frame: the values as Python objects.
        lines: the 1-based line of each row, None if the format has no lines.
        arrow: the same rows with the types of a Parquet file, None for other formats.
    """

    path: Path
    frame: pd.DataFrame
    lines: list[int] | None
    arrow: pa.Table | None = None

    def column(self, name: str, fix: str) -> pd.Series:
        """Return a column, bytes decoded as UTF-8.

        Raises:
            UserError: there is no such column (with `fix`), or it holds bytes that are not UTF-8.
        """
        if (found := self.find(name)) is not None:
            return self._decoded(found)
        columns = [str(column) for column in self.frame.columns]
        raise UserError(
            f"there is no column '{name}': {suggest_name(name, columns)}",
            where=f"{self.path}, columns {', '.join(columns)}",
            fix=fix,
        )

    def find(self, name: str) -> str | None:
        """Return the column of that name, up to white space around it and its Unicode form."""
        if name in self.frame:
            return name
        wanted = normalize_nfc(name).strip()
        return next((str(n) for n in self.frame if normalize_nfc(str(n)).strip() == wanted), None)

    def _decoded(self, name: str) -> pd.Series:
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
                f"{len(wrong):,} of {len(values):,} rows of the column '{name}' hold bytes that "
                "are not UTF-8",
                where=shown(places[row] for row in wrong),
                fix="store the column as text, or as bytes of text in UTF-8",
            )
        return values

    def places(self) -> list[str]:
        """Return for each row what a message can name: path:line, or the row of a path."""
        if self.lines is not None:
            return [f"{self.path}:{line}" for line in self.lines]
        return [f"{self.path} row {row}" for row in range(len(self.frame))]


def read_table(path: str | Path, quoting: str = "auto") -> Table:
    """Read a table by its extension. Raises UserError on a file that cannot be read in full.

    Args:
        quoting: of .csv and .tsv, one of QUOTING.
    """
    path = Path(path).expanduser()
    data = _read_bytes(path)
    suffix = table_suffix(path)
    if suffix.endswith(".gz"):
        data = _decompress(data, path)
        suffix = suffix.removesuffix(".gz")
    if not data or data.isspace():
        raise UserError("the file is empty", where=str(path), fix="give a file with reviews")
    if suffix == ".parquet":
        arrow, frame = formats.parquet(data, path)
        table = Table(path, frame, None, arrow)
    else:
        text = _decode(data, path)
        if delimiter := _DELIMITERS.get(suffix):
            columns, lines = formats.separated(text, path, delimiter, quoting)
        else:
            columns, lines = formats.json_lines(text, path)
        table = Table(path, pd.DataFrame(columns, dtype=object), lines)
    if table.frame.empty:
        raise UserError("the file has no rows", where=str(path), fix="give a file with reviews")
    return table


def table_suffix(path: Path) -> str:
    """Return a table's extension, `.gz` included; raises UserError on one that is not known."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])
    if suffix not in SUFFIXES:
        raise UserError(
            f"cannot tell the format of a file named '{path.name}'",
            where=str(path.absolute()),
            fix="give a file that ends in " + ", ".join(SUFFIXES),
        )
    return suffix


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        what, fix = "there is no such file", "check the path; it is relative to where you started"
        raise UserError(what, where=str(path.absolute()), fix=fix) from error
    except OSError as error:
        what = f"the file cannot be read: {error.strerror}"
        raise UserError(what, where=str(path.absolute()), fix="give a file you can read") from error


def _decompress(data: bytes, path: Path) -> bytes:
    """Unpack; refuses what grows beyond all that reviews do, before it fills the memory."""
    most = max(LEAST_BOMB, len(data) * MOST_TIMES)
    try:
        with gzip.open(io.BytesIO(data)) as stream:
            found = stream.read(most + 1)
        if len(found) > most:
            raise UserError(
                f"unpacked, the file is over {MOST_TIMES} times as large: no text is so repetitive",
                where=str(path),
                fix="unpack it yourself if you trust it, and give the unpacked file",
            )
        return found
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"the gzip file is damaged or cut short: {error}",
            where=str(path),
            fix="copy or download it again",
        ) from error


def _decode(data: bytes, path: Path) -> str:
    # The mark of UTF-32 begins with the mark of UTF-16.
    marks = (mark for mark in _BYTE_ORDER_MARKS if data.startswith(mark))
    encoding = _BYTE_ORDER_MARKS.get(next(marks, b""), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:2]:
        raise UserError(
            "the file seems to be UTF-16 or UTF-32 without a byte order mark",
            where=str(path),
            fix="save the file as UTF-8 (iconv -f utf-16le -t utf-8)",
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, errors="ignore")
        fix = "save the file as UTF-8"
        if data.startswith(b"\x1f\x8b"):
            fix = "the file is compressed: let its name end in .gz"
        elif encoding == "utf-8":
            fix += " (from Windows Cyrillic: iconv -f cp1251 -t utf-8)"
        raise UserError(
            f"not {encoding.upper().removesuffix('-SIG')}: {error.reason} at byte "
            f"0x{data[error.start]:02x}",
            where=f"{path}:{before.count(chr(10)) + 1}",
            fix=fix,
        ) from error


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
