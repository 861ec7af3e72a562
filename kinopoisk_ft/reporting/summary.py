"""Write a summary of the report for a terminal, at most 80 columns wide."""

from __future__ import annotations

import re
import textwrap

from rich.box import Box
from rich.console import JustifyMethod
from rich.table import Table as Grid

from kinopoisk_ft.console import format_for_terminal
from kinopoisk_ft.reporting.columns import COLUMNS, TIME, TRAINABLE
from kinopoisk_ft.reporting.document import Document, Section, failures
from kinopoisk_ft.reporting.label_curves import sentences
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.table import Table, data_line
from kinopoisk_ft.statistics.metrics import HEADLINE

WIDTH = 80
# Longer names of approaches continue on the next line of the table.
NAME_WIDTH = 26
# The recommendations that the summary contains, in this order; see `Choice.limit`.
SHOWN = ("quality", "time", "parameters")
HEADINGS: dict[str, JustifyMethod] = {
    "approach": "left", HEADLINE: "left", "short_train_seconds": "right",
    "short_trainable_parameters": "right", "verdict": "left",
}  # fmt: skip
# A table without lines except for a rule of ASCII characters below the headings.
# `Box` expects eight lines of four characters. The third one is the rule.
RULE = Box("    \n    \n -  \n    \n    \n    \n    \n    \n", ascii=True)


def as_summary(document: Document, locale: Locale) -> str:
    """Return the scores, the verdicts and up to three recommendations of each table."""
    parts = [_wrap(note) for note in document.notes]
    parts += ["\n".join(map(_wrap, sentences(curves, locale))) for curves in document.curves]
    for section in document.sections:
        parts += _summarize(section, locale)
    for name, _, _, cause in failures(document, locale).to_numpy():
        parts.append(_wrap(locale("failed_line", name=name, cause=cause)))
    return "\n\n".join(parts)


def _summarize(section: Section, locale: Locale) -> list[str]:
    parts = [_wrap(data_line(section.table, locale))]
    if section.caveats:
        short = "; ".join(caveat.short for caveat in section.caveats)
        parts.append(_wrap(f"{locale('caveats')}: {short}."))
    parts.append(_results(section.table, locale))
    found = {choice.limit: choice.text for choice in section.choices}
    # The report has the other sentences of each recommendation.
    # There are no recommendations if fewer than two approaches have learned.
    texts = [_cut(found[limit]) for limit in SHOWN if limit in found] or section.conclusions
    return [*parts, "\n".join(map(_wrap, texts))]


def _results(table: Table, locale: Locale) -> str:
    shown = Grid(box=RULE, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for key, justify in HEADINGS.items():
        width = NAME_WIDTH if key == "approach" else None
        shown.add_column(
            locale(key), justify=justify, max_width=width, no_wrap=width is None, overflow="fold"
        )
    for row in table.rows:
        trainable, verdict = row.mean(TRAINABLE), table.verdict(row)
        shown.add_row(
            row.name,
            _score(table, row, locale),
            locale.value(row.mean(TIME), COLUMNS[TIME]),
            NOTHING if trainable is None else locale.short(float(f"{trainable:.2g}")),
            locale(verdict) if verdict else NOTHING,
            style="bold" if verdict == "reference" else None,
        )
    if HEADLINE in table.majority:
        shown.add_row(locale("majority"), locale.number(table.majority[HEADLINE], 3))
    return format_for_terminal(shown, WIDTH)


def _cut(text: str) -> str:
    """Cut a text after its first sentence."""
    # The range А-Я does not contain Ё.
    return re.split(r"(?<=\.) (?=[A-ZА-ЯЁ])", text, maxsplit=1)[0]


def _score(table: Table, row: Row, locale: Locale) -> str:
    score = locale.number(row.values[HEADLINE].mean, 3)
    interval = table.interval(row, HEADLINE)
    return f"{score} {locale.interval(interval, digits=3)}" if interval else score


def _wrap(text: str) -> str:
    # Names with hyphens, such as rubert-tiny2, are not divided.
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
