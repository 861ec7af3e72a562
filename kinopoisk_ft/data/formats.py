"""Parse tables in JSON Lines, CSV, TSV and Parquet format."""

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

from kinopoisk_ft.data.cleaning import list_first
from kinopoisk_ft.errors import UserError

log = logging.getLogger(__name__)

# "csv" parses quoted fields (RFC 4180), "none" reads quotes as ordinary characters, and "auto" is
# "csv" with a check that no quoted field contains whole rows.
QUOTING = ("auto", "csv", "none")
# Number of lines to check in each multi-line row. If several rows were joined, the first lines are
# also rows.
_CHECKED_LINES = 4
_FIX = (
    "use data.quoting=none (predict: --quoting none) to read quotes as ordinary characters, or "
    "data.quoting=csv if each of these fields is one text"
)
# A small Parquet file can contain any number of copies of a value. A file with more cells than
# this, and more cells than bytes, is refused before it fills the memory.
MAX_CELLS = 10**7

# The values by column name, and the 1-based number of the line on which each row starts.
Columns = tuple[dict[str, list[Any]], list[int]]


def parse_json_lines(text: str, path: Path) -> Columns:
    """Parse JSON Lines; skip blank lines, and fill missing keys with None."""
    rows, lines = [], []
    # `splitlines` would also split at U+2028, which a JSON string may contain.
    for line, source in enumerate(text.split("\n"), start=1):
        if not source.strip():
            continue
        try:
            values = json.loads(source, object_pairs_hook=_reject_repeated_keys)
            # An escape sequence can contain an unpaired surrogate, which cannot be encoded.
            if "\\ud" in source or "\\uD" in source:
                json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise _json_error(path, line, "unpaired surrogate (\\ud…) in a string") from error
        # Very deep nesting raises RecursionError.
        except (ValueError, RecursionError) as error:
            raise _json_error(path, line, f"malformed JSON: {error}") from error
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise _json_error(path, line, f"expected a JSON object, found a {kind}")
        rows.append(values)
        lines.append(line)
    # A dict keeps the names in the order in which they first occur. A set has no order.
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}, lines


def _reject_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # `json` would keep only the last of the repeated values, without an error.
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {max(names, key=names.count)!r} occurs twice in one object")
    return values


def _json_error(path: Path, line: int, what: str) -> UserError:
    fix = 'correct or remove the line; each line must be one object: {"text": "…", "label": "…"}'
    return UserError(what, where=f"{path}:{line}", fix=fix)


def parse_separated(text: str, path: Path, delimiter: str, quoting: str) -> Columns:
    """Parse comma- or tab-separated values; for `quoting`, see QUOTING."""
    # Some reviews are longer than the default limit of 131,072 characters per field.
    # The limit must fit into a C long, which has only 32 bits on Windows.
    csv.field_size_limit(2**31 - 1)
    # With strict=True, an unclosed quote is an error. Otherwise it would join the remaining rows.
    reader = csv.reader(
        # newline="" does not change line breaks in quoted fields, and lets rows end with \r.
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    last_lines: dict[int, int] = {}
    while True:
        # `line_num` counts lines, not rows, so this is the first line of the next row.
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise UserError(
                f"malformed row: {error}",
                where=f"{path}:{line}",
                fix='close the quotes, and write a quote inside a quoted field as "". If quotes '
                "are ordinary characters, use data.quoting=none (predict: --quoting none)",
            ) from error
        # The csv module returns an empty list for a blank line.
        if not fields:
            continue
        if not header:
            header = fields
            _check_header(header, f"{path}:{line}")
            continue
        if len(fields) != len(header):
            raise UserError(
                f"the row has {len(fields)} fields, but the header has {len(header)}",
                where=f"{path}:{line}",
                fix="put quotes around each field that contains the delimiter or a newline",
            )
        # A row spans several lines only if a quoted field contains line breaks.
        if reader.line_num > line:
            last_lines[len(rows)] = reader.line_num
        rows.append(fields)
        lines.append(line)
    if quoting == "auto" and last_lines:
        check_multiline_fields(rows, lines, last_lines, delimiter, path)
    columns = [list(column) for column in zip(*rows, strict=True)]
    # Without rows, `columns` is empty, and so is the result. The caller then raises an error.
    return dict(zip(header, columns, strict=False)), lines


def _check_header(header: list[str], where: str) -> None:
    for name in header:
        if header.count(name) > 1:
            raise UserError(
                f"the column name '{name}' occurs twice in the header",
                where=where,
                fix="rename one of these columns",
            )


def parse_parquet(data: bytes, path: Path) -> tuple[pa.Table, pd.DataFrame]:
    """Parse a Parquet file.

    Returns:
        An Arrow table, and a frame with the same rows as Python objects. In both, class names
        replace the ids of ClassLabel columns. In the frame, integers stay integers in columns with
        nulls. Lists become NumPy arrays, which need much less memory than Python lists.

    Raises:
        UserError: the file is damaged, or has too many cells (see MAX_CELLS).
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        # These numbers are in the footer of the file, so no values have been decoded yet.
        cells = file.metadata.num_rows * max(1, file.metadata.num_columns)
        if cells > max(MAX_CELLS, len(data)):
            raise ValueError(f"{cells:,} cells in {len(data):,} bytes")
        # The columns are selected by name below, so the names must be unique.
        _check_header(file.schema_arrow.names, str(path))
        table = _replace_class_numbers(file.read())
        columns = {name: _to_objects(table[name]) for name in table.column_names}
    except (pa.ArrowException, OSError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"the file is damaged or not a Parquet file: {error}",
            where=str(path),
            fix="copy or download the file again",
        ) from error
    return table, pd.DataFrame(columns)


def _to_objects(column: pa.ChunkedArray) -> pd.Series:
    if pa.types.is_nested(column.type):
        return column.to_pandas()
    try:
        # `to_pandas` would convert integers with nulls to float64, which is exact only up to 2**53.
        values = column.to_pylist()
    except UnicodeDecodeError:
        # Values that are not UTF-8 stay bytes here, and `Table.column` reports their rows.
        values = column.cast(pa.large_binary()).to_pylist()
    return pd.Series(values, dtype=object)


def _replace_class_numbers(table: pa.Table) -> pa.Table:
    for name, class_names in _read_class_labels(table.schema).items():
        position = table.column_names.index(name)
        if pa.types.is_integer(table.schema.types[position]):
            # `datasets` stores a missing label as -1, which has no name and becomes None.
            known = dict(enumerate(class_names))
            values = pa.array([known.get(number) for number in table[name].to_pylist()])
            table = table.set_column(position, name, values)
    notes = dict(table.schema.metadata or {})
    # This note describes columns of class ids, but these columns now contain class names.
    notes.pop(b"huggingface", None)
    return table.replace_schema_metadata(notes or None)


def _read_class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    # The library `datasets` describes ClassLabel columns in the metadata of a Parquet file.
    found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    # The note may contain any JSON, so the type of each level is checked.
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


def check_multiline_fields(
    rows: list[list[str]], lines: list[int], last_lines: dict[int, int], delimiter: str, path: Path
) -> None:
    """Check that no quoted field contains whole rows of the table.

    If quotes are ordinary characters of the texts, CSV parsing can join several rows into one
    multi-line row. Each of its lines then has as many fields as the header. If this is true for
    most multi-line rows, but there is no reason for the error below, a warning is logged.

    Args:
        lines: line number in the file, from 1, at which each row starts.
        last_lines: {index in `rows`: line number at which the row ends} for multi-line rows.

    Raises:
        UserError: a multi-line row contains at least two lines that look like separate rows. Such a
            line has as many fields as the header. In columns with few distinct values, such as
            labels, it has values that also occur in single-line rows.
    """
    known = _known_values(rows, last_lines)
    swallowing, doubtful = [], []
    for row, last_line in last_lines.items():
        # Joining the fields restores the lines of the file, without the quotes around fields.
        plain = delimiter.join(rows[row]).splitlines()[:_CHECKED_LINES]
        split = [fields for line in plain if len(fields := line.split(delimiter)) == len(rows[row])]
        place = f"{path}:{lines[row]}-{last_line}"
        # If `known` is empty, `_is_row` compares no column and accepts every line.
        if known and sum(_is_row(fields, known) for fields in split) >= 2:
            swallowing.append(place)
        elif len(split) == len(plain):
            doubtful.append(place)
    if swallowing:
        raise UserError(
            f"{len(swallowing):,} fields that start with a quote contain several rows, so the "
            "quotes are probably part of the texts and not CSV quoting",
            where=list_first(swallowing),
            fix=_FIX,
        )
    # With real CSV quoting, few texts have as many fields in each line as a row has.
    if 2 * len(doubtful) > len(last_lines):
        log.warning(
            "%d rows span several lines, each of which could be a row: %s. If the quotes are part "
            "of the texts and not CSV quoting, rows are lost; %s",
            len(doubtful),
            list_first(doubtful),
            _FIX,
        )


def _known_values(rows: list[list[str]], skipped: Container[int]) -> dict[int, set[str]]:
    """Return {column index: distinct values} for the columns with few distinct values.

    The rows whose indices are in `skipped` are ignored.
    """
    columns = zip(*(row for i, row in enumerate(rows) if i not in skipped), strict=True)
    distinct = [(len(column), set(column)) for column in columns]
    # In these columns, each value occurs at least twice on average.
    return {i: values for i, (size, values) in enumerate(distinct) if 2 * len(values) <= size}


def _is_row(fields: list[str], known: dict[int, set[str]]) -> bool:
    return all(fields[column] in values for column, values in known.items())
