"""Write a summary of the report for a terminal, at most 80 columns wide."""

from __future__ import annotations

import textwrap

from kinopoisk_ft.reporting import frames
from kinopoisk_ft.reporting.columns import COLUMNS
from kinopoisk_ft.reporting.conclusions import choices
from kinopoisk_ft.reporting.document import Document, Section, failures
from kinopoisk_ft.reporting.label_curves import sentences
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.table import Table, data_line, write_value
from kinopoisk_ft.statistics.metrics import HEADLINE

WIDTH = 80
# Longer names of approaches continue on the next line of the table.
NAME_WIDTH = 26
# The recommendations that the summary contains, in this order; see `Choice.limit`.
SHOWN = ("quality", "time", "parameters")


def as_summary(document: Document, locale: Locale) -> str:
    """Return for each table the scores, the verdicts and up to three recommendations."""
    parts = [*map(_wrap, document.notes)]
    parts += ["\n".join(map(_wrap, sentences(curves, locale))) for curves in document.curves]
    for section in document.sections:
        parts += _summarize(section, locale)
    for _, failure in failures(document, locale).iterrows():
        parts.append(_wrap(locale("failed_line", name=failure.iloc[0], cause=failure.iloc[3])))
    return "\n\n".join(parts)


def _summarize(section: Section, locale: Locale) -> list[str]:
    table = section.table
    found = {choice.limit: choice.text for choice in choices(table, locale)}
    texts = [found[limit] for limit in SHOWN if limit in found] or section.conclusions
    banner = [_wrap(section.banner)] if section.banner else []
    return [
        _wrap(data_line(table, locale)),
        *banner,
        _results(table, locale),
        "\n".join(map(_wrap, texts)),
    ]


def _results(table: Table, locale: Locale) -> str:
    rows = []
    for row in table.rows:
        seconds, trainable = row.mean("train_seconds"), row.mean("trainable_parameters")
        name, *others = textwrap.wrap(row.name, NAME_WIDTH, subsequent_indent="  ")
        # The first of the verdicts is the one for the usual margin.
        verdict = frames.verdicts(table, row, locale)[0]
        rows.append([
            name,
            _score(table, row, locale),
            NOTHING if seconds is None else write_value(seconds, COLUMNS["train_seconds"], locale),
            NOTHING if trainable is None else _short(trainable, locale),
            verdict,
        ])  # fmt: skip
        rows += [[line, "", "", "", ""] for line in others]
    if HEADLINE in table.majority:
        score = locale.number(table.majority[HEADLINE], 3)
        rows.append([locale("majority"), score, "", "", ""])
    headings = [
        locale("approach"), locale(HEADLINE), locale("short_train_seconds"),
        locale("short_trainable_parameters"), locale("short_within"),
    ]  # fmt: skip
    return _align([headings, *rows])


def _align(rows: list[list[str]]) -> str:
    """Align the columns: the third and the fourth one on the right, the others on the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        aligned = [
            text.rjust(width) if number in (2, 3) else text.ljust(width)
            for number, (text, width) in enumerate(cells)
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def _short(count: float, locale: Locale) -> str:
    return locale.short(float(f"{count:.2g}"))


def _score(table: Table, row: Row, locale: Locale) -> str:
    score = locale.number(row.values[HEADLINE].mean, 3)
    interval = table.comparison.means.get(row.name, {}).get(HEADLINE)
    return f"{score} {locale.interval(interval, digits=3)}" if interval else score


def _wrap(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
