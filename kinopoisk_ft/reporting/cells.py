"""The report's tables as rows of written cells, the heading first."""

from __future__ import annotations

from kinopoisk_ft.reporting.columns import BEST, MARKS
from kinopoisk_ft.reporting.document import Document
from kinopoisk_ft.reporting.rows import Row
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.reporting.words import NOTHING, Words, time_digits

DIGEST_CHARACTERS = 12
SCORES = ("accuracy", "f1_weighted", "f1_macro")
TIMES = ("train_seconds", "eval_seconds")
COUNTS = ("total_parameters", "tokens_per_second", "peak_memory_mb")
SEEN = "characters_seen_share"
SIZES = (*COUNTS, SEEN, "max_length")


def data_line(table: Table, words: Words) -> str:
    """Return which data, split and test rows a table is about."""
    rules = sorted({row.setting("data.split") for row in table.rows} - {""})
    rule = words("split_rule", rule=words.listed(rules)) if rules else ""
    digest = table.split_digest[:DIGEST_CHARACTERS]
    return words("data", data=table.data, rule=rule, digest=digest)


def results(table: Table, words: Words) -> list[list[str]]:
    """Return what was measured: mean ± deviation over n seeds [interval]; majority class last."""
    columns = ["approach", "n", *SCORES, *TIMES, "trainable_parameters"]
    rows = [[words.header(column) for column in columns]]
    for row in table.rows:
        scores = [_score(table, row, column, words) for column in SCORES]
        times = [spread_text(row, c, _time_digits(row, c), words) for c in TIMES]
        trained = whole_text(row, "trainable_parameters", words)
        rows.append([row.name, str(len(row.runs)), *scores, *times, trained])
    floor = [words.score(table.majority[c]) if c in table.majority else NOTHING for c in SCORES]
    rest = [NOTHING] * (len(columns) - 2 - len(SCORES))
    rows.append([words("majority"), NOTHING, *floor, *rest])
    return rows


def sizes(table: Table, words: Words) -> list[list[str]]:
    """Return how large and how fast each row is, and how much of the reviews it read."""
    rows = [[words.header(column) for column in ("approach", *SIZES)]]
    for row in table.rows:
        counts = [whole_text(row, column, words) for column in COUNTS]
        rows.append([row.name, *counts, seen_text(row, words), row.first.max_length or NOTHING])
    return rows


def whole_text(row: Row, column: str, words: Words) -> str:
    """Return a mean without digits after the point."""
    mean = row.mean(column)
    return NOTHING if mean is None else words.number(mean, 0)


def seen_text(row: Row, words: Words) -> str:
    """Return the share of the characters that the row's model read."""
    share = row.mean(SEEN)
    return NOTHING if share is None else words.percent(share)


def against_best(table: Table, words: Words) -> list[list[str]]:
    """Return the marks and the signed distances from the best values."""
    columns = ["approach", *MARKS, *(f"{column}_from_best" for column in BEST)]
    rows = [[words.header(column) for column in columns]]
    for row in table.rows:
        marks = [words("yes" if row.marked(mark) else "no") for mark in MARKS]
        rows.append([row.name, *marks, *(_distance(row, c, words) for c in BEST)])
    floor = {c: table.majority[c] - best for c, best in table.best.items() if c in table.majority}
    distances = [words.score(floor[c], signed=True) if c in floor else NOTHING for c in BEST]
    rows.append([words("majority"), *[words("no")] * len(MARKS), *distances])
    return rows


def failures(document: Document, words: Words) -> list[list[str]]:
    """Return the failed runs, those with one cause together."""
    rows = [[words(column) for column in ("approach", "count", "seeds", "cause")]]
    for failure in document.failures:
        seeds = ", ".join(failure.seeds) or NOTHING
        cause = words(f"cause_{failure.kind}", detail=failure.detail)
        rows.append([failure.approach, str(len(failure.run_ids)), seeds, cause])
    return rows


def _score(table: Table, row: Row, column: str, words: Words) -> str:
    text = spread_text(row, column, 4, words)
    interval = table.comparison.means.get(row.name, {}).get(column)
    return f"{text} {words.interval(interval)}" if interval else text


def _time_digits(row: Row, column: str) -> int:
    return time_digits(row.mean(column) or 0.0)


def spread_text(row: Row, column: str, digits: int, words: Words) -> str:
    """Return mean ± standard deviation, the mean alone of one seed."""
    spread = row.values.get(column)
    if spread is None:
        return NOTHING
    mean = words.number(spread.mean, digits)
    return mean if spread.std is None else f"{mean} ± {words.number(spread.std, digits)}"


def _distance(row: Row, column: str, words: Words) -> str:
    if column not in row.from_best:
        return NOTHING
    write = words.seconds if column in TIMES else words.score
    return write(row.from_best[column], signed=True)
