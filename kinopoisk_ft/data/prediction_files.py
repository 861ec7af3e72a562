"""Add columns with predictions to the user's table, without changing other columns."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kinopoisk_ft.data.local import describe_types
from kinopoisk_ft.data.tables import Table
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.files import temporary_path
from kinopoisk_ft.text import format_csv

Encode = Callable[[Any], str]
# A function that adds the columns of a frame to the table and writes the file.
Write = Callable[[pd.DataFrame], None]


def prepare_output(table: Table, output: Path) -> Write:
    """Prepare to write a table with added columns to `output`.

    The cells of the table are converted now, so that errors are reported before prediction.

    Returns:
        A function that takes the added columns and writes the file.

    Raises:
        UserError: the file format cannot store a value of the table.
    """
    if output.suffix == ".parquet":
        arrow = table.arrow if table.arrow is not None else _to_arrow(table)
        return lambda added: _write_parquet(arrow, added, output)
    encode = _encode_json if output.suffix == ".jsonl" else _encode_csv
    cells = {name: _encode_column(table, name, encode) for name in map(str, table.frame)}
    return lambda added: _write_text(cells, added, encode, output)


def _to_arrow(table: Table) -> pa.Table:
    columns = {}
    for name in table.frame:
        values = table.frame[name].tolist()
        try:
            columns[name] = pa.array(values)
            # Parquet refuses some types that Arrow accepts (structs without fields), so try here.
            pq.write_table(pa.table({name: columns[name][:0]}), io.BytesIO())
            # Arrow gives all structs of a column the same fields, which would change the values.
            if pa.types.is_nested(columns[name].type) and columns[name].to_pylist() != values:
                raise pa.ArrowInvalid("the objects have different keys")
        except (pa.ArrowException, OverflowError) as error:
            raise UserError(
                f"the column '{name}' contains {describe_types(values)}, which Parquet cannot "
                f"store exactly in one column: {error}",
                where=_find_other_type(values, table.places()) or str(table.path),
                fix="set --output to a name that ends in .jsonl, or convert the column to one type",
            ) from error
    return pa.table(columns)


def _find_other_type(values: list[Any], places: list[str]) -> str | None:
    typed = [(type(value), place) for value, place in zip(values, places, strict=True)]
    # Nulls are ignored, because a column of any Arrow type can contain them.
    present = [pair for pair in typed if pair[0] is not type(None)]
    return next((place for kind, place in present if kind is not present[0][0]), None)


def _encode_column(table: Table, name: str, encode: Encode) -> list[str]:
    values = table.frame[name].tolist()
    # In `frame`, nested values are NumPy arrays, which `json` cannot encode.
    if table.arrow is not None and pa.types.is_nested(table.arrow[name].type):
        values = table.arrow[name].to_pylist()
    try:
        return [encode(value) for value in values]
    except UnicodeDecodeError as error:
        raise UserError(
            f"the column '{name}' contains bytes that are not UTF-8, which .jsonl and .csv files "
            "cannot store",
            where=str(table.path),
            fix="set --output to a name that ends in .parquet",
        ) from error


def _encode_json(value: Any) -> str:
    # JSON has no dates, decimal numbers or bytes, so they become strings.
    return json.dumps(value, ensure_ascii=False, default=_to_text)


def _encode_csv(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return _encode_json(value)
    return "" if value is None else _to_text(value)


def _to_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _write_text(
    cells: dict[str, list[str]], added: pd.DataFrame, encode: Encode, output: Path
) -> None:
    more = {name: [encode(value) for value in added[name].tolist()] for name in added}
    rows = zip(*cells.values(), *more.values(), strict=True)
    names = [*cells, *more]

    def write(part: Path) -> None:
        # Without newline="", Windows would write \r\n for each \n, also inside the texts.
        with part.open("w", encoding="utf-8", newline="") as stream:
            if encode is _encode_csv:
                stream.writelines(format_csv([names, *rows]))
            else:
                # The cells are already JSON, so `json.dumps` would encode them a second time.
                keys = [_encode_json(name) for name in names]
                for row in rows:
                    pairs = (f"{key}: {value}" for key, value in zip(keys, row, strict=True))
                    stream.write("{" + ", ".join(pairs) + "}\n")

    _write_atomically(output, write)


def _write_parquet(table: pa.Table, added: pd.DataFrame, output: Path) -> None:
    for name in added:
        table = table.append_column(name, pa.array(added[name].tolist()))
    _write_atomically(output, lambda part: pq.write_table(table, part))


def _write_atomically(output: Path, write: Callable[[Path], None]) -> None:
    part = temporary_path(output)
    try:
        write(part)
        # Renaming is atomic, so `output` is never incomplete.
        os.replace(part, output)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(
            f"the file cannot be written: {error.strerror or error}",
            where=str(output),
            fix="free disk space, or set --output to a path on another disk",
        ) from error
