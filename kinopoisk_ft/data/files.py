"""Tables on disk, read so that a mistake in them is told with its line.

.jsonl .json (one object a line), .csv, .tsv, each also as .gz, and .parquet. All text is UTF-8.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kinopoisk_ft.data import formats
from kinopoisk_ft.errors import UserError, nearest

MOST_TIMES = 100  # what a file may grow when unpacked; reviews do by 3 to 5
LEAST_BOMB = 2**28  # bytes that any may grow to


@dataclass(frozen=True)
class Table:
    """A file's rows; `lines` holds the 1-based line of each, None where a format has no lines."""

    path: Path
    frame: pd.DataFrame
    lines: list[int] | None

    def column(self, name: str, fix: str) -> pd.Series:
        """Return a column; raises UserError naming the columns found, the nearest and the fix."""
        if name in self.frame:
            return self.frame[name]
        columns = [str(column) for column in self.frame.columns]
        raise UserError(
            f"there is no column '{name}': {nearest(name, columns)}",
            where=f"{self.path}, columns {', '.join(columns)}",
            fix=fix,
        )

    def places(self) -> list[str]:
        """Return for each row what a message can name: path:line, or the row of a path."""
        if self.lines is not None:
            return [f"{self.path}:{line}" for line in self.lines]
        return [f"{self.path} row {row}" for row in range(len(self.frame))]


def read_table(path: str | Path) -> Table:
    """Read a table by its extension. Raises UserError on a file that cannot be read in full."""
    path = Path(path).expanduser()
    data = _read_bytes(path)
    suffix = table_suffix(path)
    if suffix.endswith(".gz"):
        data = _decompress(data, path)
        suffix = suffix.removesuffix(".gz")
    if not data.strip():
        raise UserError("the file is empty", where=str(path), fix="give a file with reviews")
    if suffix == ".parquet":
        table = Table(path, formats.parquet(data, path), None)
    else:
        rows = list(_PARSERS[suffix](_decode(data, path), path))
        frame = pd.DataFrame([values for _, values in rows], dtype=object)
        table = Table(path, frame, [line for line, _ in rows])
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
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        fix = "save the file as UTF-8 (from Windows Cyrillic: iconv -f cp1251 -t utf-8)"
        if data.startswith(b"\x1f\x8b"):
            fix = "the file is compressed: let its name end in .gz"
        raise UserError(
            f"not UTF-8: {error.reason} at byte 0x{data[error.start]:02x}",
            where=f"{path}:{line}",
            fix=fix,
        ) from error


_PARSERS: dict[str, Callable[[str, Path], Iterator[formats.Row]]] = {
    ".jsonl": formats.json_lines,
    ".json": formats.json_lines,
    ".csv": formats.comma_separated,
    ".tsv": formats.tab_separated,
}
SUFFIXES = (*_PARSERS, *(f"{suffix}.gz" for suffix in _PARSERS), ".parquet")
