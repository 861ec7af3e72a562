"""The page's main table: cells with intervals, marks and distances from the best."""

from __future__ import annotations

from dataclasses import dataclass

from kinopoisk_ft.reporting.columns import BEST, MARKS
from kinopoisk_ft.reporting.locale import NOTHING, Words, time_digits
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.table import (
    CHARACTERS_SEEN,
    SCORES,
    Table,
    seen_text,
    spread_text,
    whole_text,
)

COLUMNS = (
    *SCORES, "train_seconds", "eval_seconds", "trainable_parameters", "total_parameters",
    "tokens_per_second", "peak_memory_mb", CHARACTERS_SEEN,
)  # fmt: skip
MARK_OF = {column: mark for mark, column in MARKS.items()}


@dataclass(frozen=True)
class Cell:
    """A value, the interval and distance written under it, and the mark it earns."""

    text: str
    under: tuple[str, ...] = ()
    mark: str = ""


@dataclass(frozen=True)
class Line:
    """One approach, or the majority class."""

    name: str
    seeds: str
    cells: list[Cell]


def heading(words: Words) -> list[str]:
    """Return the columns' headings."""
    return [words.header(column) for column in ("approach", "n", *COLUMNS)]


def lines(table: Table, words: Words) -> list[Line]:
    """Return a line an approach, best F1 first, and the majority class last."""
    found = [
        Line(row.name, str(len(row.runs)), [_cell(table, row, c, words) for c in COLUMNS])
        for row in table.rows
    ]
    return [*found, Line(words("majority"), NOTHING, [_floor(table, c, words) for c in COLUMNS])]


def _cell(table: Table, row: Row, column: str, words: Words) -> Cell:
    mean = row.mean(column)
    if mean is None:
        return Cell(NOTHING)
    if column == CHARACTERS_SEEN:
        return Cell(seen_text(row, words))
    if column in ("train_seconds", "eval_seconds"):
        text = spread_text(row, column, time_digits(mean), words)
    elif column in SCORES:
        text = spread_text(row, column, 4, words)
    else:
        text = whole_text(row, column, words)
    interval = table.comparison.means.get(row.name, {}).get(column)
    under = [words.interval(interval)] if interval else []
    best = column in MARK_OF and row.marked(MARK_OF[column])
    if column in row.from_best and not best:
        write = words.score if column in SCORES else words.seconds
        under.append(f"Δ {write(row.from_best[column], signed=True)}")
    return Cell(text, tuple(under), words(f"mark_{MARK_OF[column]}") if best else "")


def _floor(table: Table, column: str, words: Words) -> Cell:
    if column not in table.majority:
        return Cell(NOTHING)
    value = table.majority[column]
    distance = words.score(value - table.best[column], signed=True) if column in BEST else ""
    return Cell(words.score(value), (f"Δ {distance}",) if distance else ())
