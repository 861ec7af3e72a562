"""A report for programs: CSV rows and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from kinopoisk_ft.reporting.columns import BEST, COLUMNS, MARKS
from kinopoisk_ft.reporting.document import Document, Section
from kinopoisk_ft.reporting.locale import MINUS, NO_BREAK_SPACE, Words
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.table import Table, data_line, results
from kinopoisk_ft.statistics.metrics import METRICS
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


PAIR_FIELDS = [
    "data", "split_digest", "a", "b", "paired", "same_seeds", "several_seeds", "metric",
    "difference", "low", "high", "p", "p_holm", "only_a", "only_b", "mcnemar_p", "mcnemar_p_holm",
]  # fmt: skip
SLICE_FIELDS = ["data", "split_digest", "approach", "by", "value", "n", "metric"]
SLICE_FIELDS += ["mean", "low", "high"]


def differences_csv(document: Document) -> str:
    """Return one line for each pair of approaches and metric."""
    return _csv(PAIR_FIELDS, (line for s in document.sections for line in _pairs(s.table)))


def slices_csv(document: Document) -> str:
    """Return one line for each approach, slice and metric."""
    return _csv(SLICE_FIELDS, (line for s in document.sections for line in _slices(s.table)))


def _pairs(table: Table) -> Iterator[list[Any]]:
    for pair in table.comparison.pairs:
        how = [pair.a, pair.b, *(_yes(x) for x in (pair.paired, pair.same_seeds, pair.measured))]
        test = pair.mcnemar
        tested = [test.only_a, test.only_b, test.p, test.p_holm] if test else [""] * 4
        for metric, d in pair.differences.items():
            found = [metric, d.mean, d.low, d.high, d.p, d.p_holm]
            yield [table.data, table.split_digest, *how, *found, *tested]


def _slices(table: Table) -> Iterator[list[Any]]:
    for name, found in table.comparison.slices.items():
        for one in found:
            for metric, x in (("accuracy", one.accuracy), ("f1_weighted", one.f1_weighted)):
                what = [name, one.by, one.value, one.n, metric]
                yield [table.data, table.split_digest, *what, x.mean, x.low, x.high]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _csv(fields: list[str], lines: Iterator[list[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows([no_formula(value) for value in line] for line in lines)
    return stream.getvalue()


SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "±": r"$\pm$", MINUS: "$-$", NO_BREAK_SPACE: "~", "Δ": r"$\Delta$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
HEAD = r"""% In the preamble: \usepackage{booktabs}, \usepackage{graphicx}
% and for Russian: \usepackage[T2A]{fontenc}, \usepackage[russian]{babel}
"""


def as_latex(document: Document, words: Words) -> str:
    """Return a `table` environment for each table of the report."""
    tables = [
        _table(results(s.table, words), data_line(s.table, words), f"tab:comparison-{i}")
        for i, s in enumerate(document.sections, start=1)
    ]
    return HEAD + "\n".join(tables)


def _table(rows: list[list[str]], caption: str, label: str) -> str:
    head, *body = [" & ".join(map(escape, row)) + r" \\" for row in rows]
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{escape(caption)}}}", rf"\label{{{label}}}",
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", head, r"\midrule",
        *body, r"\bottomrule", r"\end{tabular}}", r"\end{table}", "",
    ])  # fmt: skip


def escape(text: str) -> str:
    """Return the text with every sign that LaTeX would read as its own made plain."""
    return "".join(SPECIAL.get(sign, sign) for sign in text)
