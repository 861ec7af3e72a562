"""Write the report as Markdown."""

from __future__ import annotations

import re

import pandas as pd

from kinopoisk_ft.reporting import frames, label_curves
from kinopoisk_ft.reporting.columns import BEST
from kinopoisk_ft.reporting.document import Document, Section, failures
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.table import Table, data_line
from kinopoisk_ft.statistics.metrics import shown_in


def as_markdown(document: Document, locale: Locale) -> str:
    """Return the report as Markdown, with links to the figures."""
    notes = [_escape(note) for note in document.notes]
    heading = locale("experiment", name=document.experiment)
    if document.parent:
        # In Markdown, two spaces at the end of a line force a line break.
        heading += "  \n" + locale("sweep", parent=document.parent)
    parts = [f"# {locale('title')}", _escape(heading), *notes]
    for curves in document.curves:
        parts.append(f"## {locale('curves_by_labels')}")
        parts += [_escape(line) for line in label_curves.sentences(curves, locale)]
        parts.append(f"![{locale('curves_by_labels')}]({curves.stem}.png)")
        parts.append(_piped(label_curves.scores_frame(curves, locale)))
        parts += _titled("crossings", label_curves.crossings_frame(curves, locale), locale)
        parts.append(_escape(locale("note_curves")))
    for section in document.sections:
        parts += _summary(section, locale)
        parts += _listed("notes", section.notes, locale)
        parts.append(f"![{locale('axis_f1')}]({section.pictures['comparison']}.png)")
        parts += _titled("against_best", frames.against_best(section.table, locale), locale)
        parts.append(_best_line(section.table, locale))
        parts += _evidence(section, locale)
    if document.failures:
        title = locale("failed", count=sum(len(f.run_ids) for f in document.failures))
        parts.append(f"## {title}\n\n{_piped(failures(document, locale))}")
    return "\n\n".join(parts) + "\n"


def as_note(document: Document, locale: Locale, max_length: int, end: str) -> str:
    """Return a summary of the report as Markdown, for the note of an MLflow run.

    Args:
        max_length: maximum number of characters; a longer summary is truncated.
        end: the last paragraph, which is never truncated.
    """
    parts = [
        _escape(line)
        for curves in document.curves
        for line in label_curves.sentences(curves, locale)
    ]
    for section in document.sections:
        heading, *rest = _summary(section, locale)
        # The MLflow UI shows three lines of a collapsed note, which should be recommendations or
        # sentences on the label curves.
        parts += rest if len(document.sections) == 1 else [heading, *rest]
    # Whole parts are dropped, because a table that is cut off would not be displayed as a table.
    while parts and len("\n\n".join([*parts, end])) > max_length:
        parts.pop()
    return "\n\n".join([*parts, end])


def _summary(section: Section, locale: Locale) -> list[str]:
    # Recommendations are reversed, so that the best approach comes before the cheapest ones.
    return [
        f"## {_escape(data_line(section.table, locale))}",
        f"**{_escape(section.answer)}**",
        *_listed("caveats", [caveat.text for caveat in section.caveats], locale),
        *_listed("answer", [choice.text for choice in section.choices[::-1]], locale),
        *_listed("conclusions", section.conclusions, locale),
        *_titled("results", frames.results(section.table, locale), locale),
    ]


def _evidence(section: Section, locale: Locale) -> list[str]:
    table = section.table
    found = {
        "sizes_table": frames.sizes(table, locale),
        "forest_title": frames.from_best(table, locale),
        "other_pairs": frames.differences(table, locale),
        "calibration": frames.calibration(table, locale),
        **{
            f"slices_{metric.name}": frames.slices(table, metric.name, locale)
            for metric in shown_in("slices")
        },
        "leakage": frames.leakage(table, locale),
    }
    parts = []
    for title, frame in found.items():
        parts += _titled(title, frame, locale)
        picture = "differences" if title == "forest_title" else title
        if picture in section.pictures:
            parts.append(f"![{locale(title)}]({section.pictures[picture]}.png)")
    return parts


def _best_line(table: Table, locale: Locale) -> str:
    written = dict.fromkeys(BEST, NOTHING)
    written |= {name: locale.with_unit(best, BEST[name]) for name, best in table.best.items()}
    return locale("best_values", **written)


def _listed(title: str, lines: list[str], locale: Locale) -> list[str]:
    listed = "\n".join(f"- {_escape(line)}" for line in lines)
    return [f"### {locale(title)}\n\n{listed}"] if lines else []


def _titled(title: str, frame: pd.DataFrame, locale: Locale) -> list[str]:
    return [f"### {locale(title)}\n\n{_piped(frame)}"] if len(frame) else []


def _piped(frame: pd.DataFrame) -> str:
    sides = ["left", *["right"] * (len(frame.columns) - 1)]
    escaped = frame.map(_escape).rename(columns=_escape)
    # Otherwise, tabulate would parse the numbers in the texts, and print 0.9100 as 0.91.
    return escaped.to_markdown(index=False, colalign=sides, disable_numparse=True)


def _escape(text: str) -> str:
    # Names come from the store, and must not become links, HTML tags or new cells of a table.
    return re.sub(r"[\\|_*`]", r"\\\g<0>", text).replace("<", "&lt;").replace("](", r"]\(")
