"""Parse the text of a table: JSON lines, comma or tab separated values, Parquet."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Container
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kinopoisk_ft.data.cleaning import shown
from kinopoisk_ft.errors import UserError

MOST_CELLS = 10**7  # of a parquet file with fewer bytes: it may repeat one value without end

# The values of each column, and the 1-based line on which each row starts.
Columns = tuple[dict[str, list[Any]], list[int]]


def json_lines(text: str, path: Path) -> Columns:
    """Parse one object from each line; skip blank lines. A missing key becomes None."""
    rows, lines = [], []
    for line, source in enumerate(text.split("\n"), start=1):  # splitlines also cuts at U+2028
        if not source.strip():
            continue
        try:
            values = json.loads(source, object_pairs_hook=_without_twins)
            if "\\ud" in source or "\\uD" in source:
                json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _not_an_object(path, line, "half of a surrogate pair (\\ud…)") from error
        except (ValueError, RecursionError) as error:
            raise _not_an_object(path, line, f"malformed JSON: {error}") from error
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise _not_an_object(path, line, f"a JSON {kind} where an object is due")
        rows.append(values)
        lines.append(line)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}, lines


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {max(names, key=names.count)!r} twice in one object")
    return found


def _not_an_object(path: Path, line: int, what: str) -> UserError:
    fix = 'mend or remove the line; each line is one object: {"text": "…", "label": "…"}'
    return UserError(what, where=f"{path}:{line}", fix=fix)


def separated(text: str, path: Path, delimiter: str, quoting: str) -> Columns:
    """Parse separated values; `quoting` is one of QUOTING."""
    csv.field_size_limit(2**31 - 1)  # the default refuses texts over 131,072 characters
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    spanning: dict[int, int] = {}
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise UserError(
                f"malformed row: {error}",
                where=f"{path}:{line}",
                fix='close the quotes; a quote inside a quoted field is written "". If the file '
                "does not quote its fields: data.quoting=none (predict: --quoting none)",
            ) from error
        if not fields:
            continue
        if not header:
            header = fields
            _refuse_twins(header, f"{path}:{line}")
            continue
        if len(fields) != len(header):
            raise UserError(
                f"{len(fields)} fields where the header has {len(header)}",
                where=f"{path}:{line}",
                fix="quote a text that holds the delimiter or a newline",
            )
        if reader.line_num > line:
            spanning[len(rows)] = reader.line_num
        rows.append(fields)
        lines.append(line)
    if quoting == "auto" and spanning:
        check_spanning(rows, lines, spanning, delimiter, path)
    columns = [list(column) for column in zip(*rows, strict=True)]
    return dict(zip(header, columns, strict=False)), lines


def _refuse_twins(header: list[str], where: str) -> None:
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"the header has column '{name}' twice", where=where, fix="rename one")


def parquet(data: bytes, path: Path) -> tuple[pa.Table, pd.DataFrame]:
    """Read all rows of a Parquet file, as Arrow holds them and as Python objects.

    Integers stay integers next to nulls, and class numbers become the names that the file has for
    them. Lists and structs become NumPy arrays and dicts: as Python objects, a column of embeddings
    would take several times the memory.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        cells = file.metadata.num_rows * max(1, file.metadata.num_columns)
        if cells > max(MOST_CELLS, len(data)):
            raise ValueError(f"{cells:,} cells in {len(data):,} bytes")
        _refuse_twins(file.schema_arrow.names, str(path))
        table = _with_class_names(file.read())
        columns = {name: _objects(table[name]) for name in table.column_names}
    except (pa.ArrowException, OSError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"the parquet file is damaged or no parquet file: {error}",
            where=str(path),
            fix="copy or download it again",
        ) from error
    return table, pd.DataFrame(columns)


def _objects(column: pa.ChunkedArray) -> pd.Series:
    if pa.types.is_nested(column.type):
        return column.to_pandas()
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        # Text that is not UTF-8 is reported with its row when the column is used.
        values = column.cast(pa.large_binary()).to_pylist()
    return pd.Series(values, dtype=object)


def _with_class_names(table: pa.Table) -> pa.Table:
    """Replace the numbers of ClassLabel columns by their names, and drop the note of them."""
    for name, class_names in _class_labels(table.schema).items():
        position = table.column_names.index(name)
        if pa.types.is_integer(table.schema.types[position]):
            # -1 stands for "no label" and, having no name, becomes a missing value.
            known = dict(enumerate(class_names))
            values = pa.array([known.get(number) for number in table[name].to_pylist()])
            table = table.set_column(position, name, values)
    notes = dict(table.schema.metadata or {})
    notes.pop(b"huggingface", None)
    return table.replace_schema_metadata(notes or None)


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the columns that the `datasets` library wrote as ClassLabel, with their names."""
    found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    for key in ("info", "features"):
        found = found.get(key) if isinstance(found, dict) else None
    features = found if isinstance(found, dict) else {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
        and name in schema.names
    }


log = logging.getLogger(__name__)

# "csv" reads quoted fields (RFC 4180), "none" reads quotes as plain characters, "auto" is "csv"
# with a check that no quoted field holds rows.
QUOTING = ("auto", "csv", "none")
_LOOKED_AT = 4  # lines of a field: if it swallowed rows, its first lines are rows
_FIX = (
    "data.quoting=none (predict: --quoting none) reads quotes as plain characters; "
    "data.quoting=csv keeps these lines as one text"
)


def check_spanning(
    rows: list[list[str]], lines: list[int], spanning: dict[int, int], delimiter: str, path: Path
) -> None:
    """Check that the lines of quoted fields are not rows of the table.

    A line is taken for a row if it has as many fields as the header and, in each column with few
    different values (labels, films), a value that other rows have. Two such lines in one field
    raise a UserError. If lines agree only in the number of fields, a warning names them.

    Args:
        lines: the first line of each row.
        spanning: the last line of each row whose quoted fields hold line breaks.
    """
    candidates = [row for row in spanning if _may_hold_rows(rows[row], delimiter)]
    if not candidates:
        return
    known = _known_values(rows, spanning)
    swallowing, doubtful = [], []
    for row in candidates:
        plain = delimiter.join(rows[row]).splitlines()[:_LOOKED_AT]
        split = [fields for line in plain if len(fields := line.split(delimiter)) == len(rows[row])]
        place = f"{path}:{lines[row]}-{spanning[row]}"
        if known and sum(_is_row(fields, known) for fields in split) >= 2:
            swallowing.append(place)
        elif len(split) == len(plain):
            doubtful.append(place)
    if swallowing:
        what = (
            f"quoted fields that hold whole rows: {len(swallowing):,}; the file seems not to quote "
        )
        raise UserError(what + "its fields", where=shown(swallowing), fix=_FIX)
    # In a file that quotes its texts, few of them have the fields of a row in each line.
    if 2 * len(doubtful) > len(spanning):
        text = "%d rows span several lines, each of which could be a row. If the file does not "
        text += "quote its fields, rows are lost; %s: %s"
        log.warning(text, len(doubtful), _FIX, shown(doubtful))


def _may_hold_rows(fields: list[str], delimiter: str) -> bool:
    """Return whether the first two lines of a row have as many fields as the row, quotes ignored.

    That clears most rows of a file that quotes its fields, without a copy of their texts.
    """
    before, last = 0, len(fields) - 1
    for field in fields:
        end = field.find("\n")
        if end >= 0:
            second = field.find("\n", end + 1)
            return before + field.count(delimiter, 0, end) == last and (
                second < 0 or field.count(delimiter, end, second) == last
            )
        before += field.count(delimiter) + 1
    return True


def _known_values(rows: list[list[str]], skipped: Container[int]) -> dict[int, set[str]]:
    """Return the values of each column in which most rows repeat another row's value."""
    columns = zip(*(row for i, row in enumerate(rows) if i not in skipped), strict=True)
    values = [(len(column), set(column)) for column in columns]
    return {i: found for i, (size, found) in enumerate(values) if 2 * len(found) <= size}


def _is_row(fields: list[str], known: dict[int, set[str]]) -> bool:
    return all(fields[column] in values for column, values in known.items())
