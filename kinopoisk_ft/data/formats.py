"""Rows out of the text of a table: JSON lines, comma or tab separated values, parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kinopoisk_ft.errors import UserError

MOST_CELLS = 10**7  # of a parquet file with fewer bytes: it may repeat one value without end

Row = tuple[int, dict[str, Any]]  # 1-based line on which the row starts, and its values


def json_lines(text: str, path: Path) -> Iterator[Row]:
    """Yield one row for each line; blank lines are passed over."""
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
        yield line, values


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {max(names, key=names.count)!r} twice in one object")
    return found


def _not_an_object(path: Path, line: int, what: str) -> UserError:
    fix = 'mend or remove the line; each line is one object: {"text": "…", "label": "…"}'
    return UserError(what, where=f"{path}:{line}", fix=fix)


def _separated(text: str, path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts over 131,072 characters
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fix = 'close the quotes; a quote inside a quoted field is written ""'
            raise UserError(f"malformed row: {error}", where=f"{path}:{line}", fix=fix) from error
        if not fields:
            continue
        if not header:
            header = fields
            _refuse_twins(header, f"{path}:{line}")
        elif len(fields) != len(header):
            raise UserError(
                f"{len(fields)} fields where the header has {len(header)}",
                where=f"{path}:{line}",
                fix="quote a text that holds the delimiter or a newline",
            )
        else:
            yield line, dict(zip(header, fields, strict=True))


def _refuse_twins(header: list[str], where: str) -> None:
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"the header has column '{name}' twice", where=where, fix="rename one")


comma_separated = partial(_separated, delimiter=",")
tab_separated = partial(_separated, delimiter="\t")


def parquet(data: bytes, path: Path) -> pd.DataFrame:
    """Return all rows; numbers for which the file holds names become these names."""
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        cells = file.metadata.num_rows * max(1, file.metadata.num_columns)
        if cells > max(MOST_CELLS, len(data)):
            raise ValueError(f"{cells:,} cells in {len(data):,} bytes")
        table = file.read()
        # a column whose text is not UTF-8 is told here
        frame = table.to_pandas(ignore_metadata=True).astype(object)
        labels = _class_labels(table.schema)
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"the parquet file is damaged or no parquet file: {error}",
            where=str(path),
            fix="copy or download it again",
        ) from error
    for name, class_names in labels.items():
        # -1 stands for "no label" and, having no name, becomes a missing value.
        frame[name] = frame[name].map(dict(enumerate(class_names)))
    return frame


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
