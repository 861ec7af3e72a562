"""A report for programs: CSV rows and JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from kinopoisk_ft.reporting.columns import BEST, COLUMNS, MARKS
from kinopoisk_ft.reporting.document import Document, Section
from kinopoisk_ft.reporting.rows import Row
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.statistics.scores import METRICS
from kinopoisk_ft.text import no_formula

MAJORITY = "majority class"
COUNTS = ("trainable_parameters", "total_parameters")


def as_csv(document: Document) -> str:
    """Return one line for each row of each table; no language changes its names and numbers."""
    lines = [_record(section.table, row) for section in document.sections for row in _all(section)]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: no_formula(value) for key, value in line.items()} for line in lines)
    return stream.getvalue()


def as_json(document: Document, language: str) -> str:
    """Return everything, the runs behind each row included; what is unknown is null."""
    tables = []
    for section in document.sections:
        table = section.table
        rows = []
        for row in _all(section):
            record: dict[str, Any] = _record(table, row)
            record |= {mark: record[mark] == "yes" for mark in MARKS}
            record["runs"] = [asdict(run) for run in row.runs] if row else []
            record["own_settings"] = row.own_settings if row else {}
            rows.append({key: None if value == "" else value for key, value in record.items()})
        tables.append(
            {
                "data": table.data,
                "split_digest": table.split_digest,
                "source_digest": table.source_digest or None,
                "rows": rows,
                "best": table.best,
                "comparison": asdict(table.comparison),
                "pictures": section.pictures,
                "notes": section.notes,
                "conclusions": section.conclusions,
                "recommendations": section.recommendations,
            }
        )
    whole = {
        "experiment": document.experiment,
        "parent": document.parent,
        "language": language,
        "notes": document.notes,
        "tables": tables,
        "failed": [asdict(failure) for failure in document.failures],
    }
    return json.dumps(whole, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _all(section: Section) -> list[Row | None]:
    """Return the rows of a table and None for the majority class."""
    return [*section.table.rows, None]


def _record(table: Table, row: Row | None) -> dict[str, Any]:
    """Return one flat row; "" is unknown, and `row` None the majority class."""
    record: dict[str, Any] = {
        "data": table.data,
        "split_digest": table.split_digest,
        "source_digest": table.source_digest,
        "approach": row.name if row else MAJORITY,
        "model": row.first.model if row else "",
        "adapter": row.first.adapter if row else "",
        "max_length": row.first.max_length if row else "",
        "n": len(row.runs) if row else "",
        "seeds": " ".join(run.seed for run in row.runs) if row else "",
    }
    for column in COLUMNS:
        spread = row.values.get(column) if row else None
        if row is None:
            record[column] = table.majority.get(column, "")
        else:
            record[column] = _whole(column, spread.mean) if spread else ""
        if column not in COUNTS:
            record[f"{column}_std"] = "" if spread is None or spread.std is None else spread.std
        if column in METRICS:
            interval = table.comparison.means.get(row.name, {}).get(column) if row else None
            record[f"{column}_low"] = interval.low if interval else ""
            record[f"{column}_high"] = interval.high if interval else ""
    for mark in MARKS:
        record[mark] = "yes" if row and row.marked(mark) else "no"
    for column in BEST:
        best, mean = table.best.get(column), record[column]
        record[f"{column}_best"] = "" if best is None else best
        record[f"{column}_from_best"] = "" if best is None or mean == "" else mean - best
    return record


def _whole(column: str, value: float) -> float:
    return int(value) if column in COUNTS and value.is_integer() else value
