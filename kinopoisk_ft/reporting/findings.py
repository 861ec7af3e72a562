"""The comparison for programs, one line a finding: CSV of the differences and of the slices."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from kinopoisk_ft.reporting.document import Document
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.text import no_formula

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
