"""Write a summary of the report for a terminal, at most 80 columns wide."""

from __future__ import annotations

import re
import textwrap

from rich.box import Box
from rich.console import JustifyMethod
from rich.table import Table as Grid

from kinopoisk_ft.console import format_for_terminal
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
HEADINGS: dict[str, JustifyMethod] = {
    "approach": "left", HEADLINE: "left", "short_train_seconds": "right",
    "short_trainable_parameters": "right", "short_within": "left",
}  # fmt: skip
# A table without lines except for a rule of ASCII characters below the headings.
RULE = Box("    \n    \n -  \n    \n    \n    \n    \n    \n", ascii=True)


def as_summary(document: Document, locale: Locale) -> str:
    """Return for each table the scores, the verdicts and up to three sentences of advice."""
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
    # The report has the other sentences of each recommendation.
    texts = [_cut(found[limit]) for limit in SHOWN if limit in found] or section.conclusions
    return [
        _wrap(data_line(table, locale)),
        *_caveats(section, locale),
        _results(table, locale),
        "\n".join(map(_wrap, texts)),
    ]


def _caveats(section: Section, locale: Locale) -> list[str]:
    short = "; ".join(caveat.short for caveat in section.caveats)
    return [_wrap(f"{locale('caveats')}: {short}.")] if short else []


def _results(table: Table, locale: Locale) -> str:
    shown = Grid(box=RULE, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for key, justify in HEADINGS.items():
        width = NAME_WIDTH if key == "approach" else None
        shown.add_column(
            locale(key), justify=justify, max_width=width, no_wrap=width is None, overflow="fold"
        )
    for row in table.rows:
        seconds, trainable = row.mean("train_seconds"), row.mean("trainable_parameters")
        # The first of the verdicts is the one for the usual margin.
        verdict = frames.verdicts(table, row, locale)[0]
        shown.add_row(
            row.name,
            _score(table, row, locale),
            NOTHING if seconds is None else write_value(seconds, COLUMNS["train_seconds"], locale),
            NOTHING if trainable is None else _short(trainable, locale),
            verdict,
            style="bold" if verdict == locale("reference") else None,
        )
    if HEADLINE in table.majority:
        shown.add_row(locale("majority"), locale.number(table.majority[HEADLINE], 3))
    return format_for_terminal(shown, WIDTH)


def _cut(text: str) -> str:
    """Return the first sentence."""
    return re.split(r"(?<=\.) (?=[A-ZА-ЯЁ])", text, maxsplit=1)[0]


def _short(count: float, locale: Locale) -> str:
    return locale.short(float(f"{count:.2g}"))


def _score(table: Table, row: Row, locale: Locale) -> str:
    score = locale.number(row.values[HEADLINE].mean, 3)
    interval = table.comparison.means.get(row.name, {}).get(HEADLINE)
    return f"{score} {locale.interval(interval, digits=3)}" if interval else score


def _wrap(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
