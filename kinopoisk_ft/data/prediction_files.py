"""Write predictions next to the user's own columns, whose values stay exactly as they are."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kinopoisk_ft.data.local import kinds_of
from kinopoisk_ft.data.tables import Table
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import temporary_path

Encode = Callable[[Any], str]
Write = Callable[[pd.DataFrame], None]  # of the columns to add


def prepare_output(table: Table, output: Path) -> Write:
    """Convert a table to the format of `output`; the function returned adds columns and writes it.

    Raises UserError where a value cannot be written in this format, before anything is predicted.
    """
    if output.suffix == ".parquet":
        arrow = table.arrow if table.arrow is not None else _arrow(table)
        return lambda added: _write_parquet(arrow, added, output)
    encode = _json_text if output.suffix == ".jsonl" else _csv_text
    cells = {name: _cells(table, name, encode) for name in map(str, table.frame)}
    return lambda added: _write_text(cells, added, encode, output)


def _arrow(table: Table) -> pa.Table:
    columns = {}
    for name in table.frame:
        values = table.frame[name].tolist()
        try:
            columns[name] = pa.array(values)
            # A struct without fields fails as late as here.
            pq.write_table(pa.table({name: columns[name][:0]}), io.BytesIO())
            # Objects get each other's keys.
            if pa.types.is_nested(columns[name].type) and columns[name].to_pylist() != values:
                raise pa.ArrowInvalid("objects with different keys")
        except (pa.ArrowException, OverflowError) as error:
            raise UserError(
                f"the column '{name}' holds {kinds_of(values)}, which Parquet cannot keep exactly "
                f"in one column: {error}",
                where=_second_kind(values, table.places()) or str(table.path),
                fix="give --output a name that ends in .jsonl, or make the column one type",
            ) from error
    return pa.table(columns)


def _second_kind(values: list[Any], places: list[str]) -> str | None:
    """Return the place of the first value of another type than the first, None without one."""
    typed = [(type(value), place) for value, place in zip(values, places, strict=True)]
    present = [pair for pair in typed if pair[0] is not type(None)]
    return next((place for kind, place in present if kind is not present[0][0]), None)


def _cells(table: Table, name: str, encode: Encode) -> list[str]:
    values = table.frame[name].tolist()
    if table.arrow is not None and pa.types.is_nested(table.arrow[name].type):
        values = table.arrow[name].to_pylist()
    try:
        return [encode(value) for value in values]
    except UnicodeDecodeError as error:
        raise UserError(
            f"the column '{name}' holds bytes that are not UTF-8",
            where=str(table.path),
            fix="give --output a name that ends in .parquet",
        ) from error


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _csv_text(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return _json_text(value)
    return "" if value is None else _plain(value)


def _plain(value: Any) -> str:
    """Return a value that JSON has no form for, such as a date or a decimal number, as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _write_text(
    cells: dict[str, list[str]], added: pd.DataFrame, encode: Encode, output: Path
) -> None:
    more = {name: [encode(value) for value in added[name].tolist()] for name in added}
    rows = zip(*cells.values(), *more.values(), strict=True)
    names = [*cells, *more]

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as stream:
            if encode is _csv_text:
                csv.writer(stream, lineterminator="\n").writerows([names, *rows])
            else:
                keys = [_json_text(name) for name in names]
                for row in rows:
                    pairs = (f"{key}: {value}" for key, value in zip(keys, row, strict=True))
                    stream.write("{" + ", ".join(pairs) + "}\n")

    _replace(output, write)


def _write_parquet(table: pa.Table, added: pd.DataFrame, output: Path) -> None:
    for name in added:
        table = table.append_column(name, pa.array(added[name].tolist()))
    _replace(output, lambda part: pq.write_table(table, part))


def _replace(output: Path, write: Callable[[Path], None]) -> None:
    """Write to another name, then rename: an earlier file stays whole if this fails."""
    part = temporary_path(output)
    try:
        write(part)
        os.replace(part, output)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(
            f"the file cannot be written: {error.strerror or error}",
            where=str(output),
            fix="free space on the disk, or give --output a file elsewhere",
        ) from error
