"""A report for reading: Markdown and aligned text."""

from __future__ import annotations

import re

from kinopoisk_ft.reporting.document import Document, Section, failures
from kinopoisk_ft.reporting.leaks import leakage
from kinopoisk_ft.reporting.locale import Words
from kinopoisk_ft.reporting.table import (
    Table,
    against_best,
    calibration,
    data_line,
    differences,
    results,
    sizes,
    slices,
)


def as_text(document: Document, words: Words) -> str:
    """Return the report for a terminal: aligned columns, no markup."""
    parts = [_heading(document, words), *document.notes]
    for section in document.sections:
        parts.append(data_line(section.table, words))
        parts.append(f"{words('results')}\n{_aligned(results(section.table, words))}")
        parts.append(f"{words('sizes_table')}\n{_aligned(sizes(section.table, words))}")
        parts.append(f"{words('against_best')}\n{_aligned(against_best(section.table, words))}")
        parts.append(_best_line(section.table, words))
        for title, rows in (
            ("differences", differences(section.table, words)),
            ("calibration", calibration(section.table, words)),
        ):
            if rows:
                left = (0, 1) if title == "differences" else (0,)
                parts.append(f"{words(title)}\n{_aligned(rows, left=left)}")
        prose = {"notes": section.notes, "conclusions": section.conclusions}
        prose["answer"] = section.recommendations
        parts += [
            "\n".join([words(title), *(f"- {line}" for line in lines)])
            for title, lines in prose.items()
            if lines
        ]
    if document.failures:
        rows = failures(document, words)
        parts.append(f"{_failed_title(document, words)}\n{_aligned(rows, left=(0, 2, 3))}")
    return "\n\n".join(parts) + "\n"


def as_markdown(document: Document, words: Words) -> str:
    """Return the report as Markdown; pictures are linked by their file names."""
    notes = [_escape(note) for note in document.notes]
    parts = [f"# {words('title')}", _escape(_heading(document, words)), *notes]
    for section in document.sections:
        parts += _summary(section, words)
        parts += _listed("notes", section.notes, words)
        parts.append(f"![{words('axis_f1')}]({section.pictures['comparison']}.png)")
        parts.append(f"### {words('against_best')}\n\n{_piped(against_best(section.table, words))}")
        parts.append(_best_line(section.table, words))
        parts += _evidence(section, words)
    if document.failures:
        title = _failed_title(document, words)
        parts.append(f"## {title}\n\n{_piped(failures(document, words))}")
    return "\n\n".join(parts) + "\n"


def as_note(document: Document, words: Words, most: int) -> str:
    """Return answers, conclusions and results as Markdown: as many whole parts as `most` holds."""
    end = words("see_files")
    parts: list[str] = []
    for section in document.sections:
        heading, *rest = _summary(section, words)
        # A folded note shows three lines: they are for the answer.
        parts += rest if len(document.sections) == 1 else [heading, *rest]
    while parts and len("\n\n".join([*parts, end])) > most:
        parts.pop()
    return "\n\n".join([*parts, end])


def _summary(section: Section, words: Words) -> list[str]:
    """Return the heading of a section, and what a reader in a hurry wants of it."""
    return [
        f"## {_escape(data_line(section.table, words))}",
        *_listed("answer", section.recommendations[::-1], words),
        *_listed("conclusions", section.conclusions, words),
        f"### {words('results')}\n\n{_piped(results(section.table, words))}",
    ]


def _evidence(section: Section, words: Words) -> list[str]:
    """Return the tables behind the conclusions, those that have rows, with their pictures."""
    table = section.table
    tables = {
        "sizes_table": sizes(table, words),
        "differences": differences(table, words),
        "calibration": calibration(table, words),
        "slices_accuracy": slices(table, "accuracy", words),
        "slices_f1_weighted": slices(table, "f1_weighted", words),
        "leakage": leakage(table, words),
    }
    parts = []
    for title, rows in tables.items():
        if rows:
            parts.append(f"### {words(title)}\n\n{_piped(rows)}")
        if title in section.pictures:
            parts.append(f"![{words(title)}]({section.pictures[title]}.png)")
    return parts


def _heading(document: Document, words: Words) -> str:
    lines = [words("experiment", name=document.experiment)]
    if document.parent:
        lines.append(words("sweep", parent=document.parent))
    return "  \n".join(lines)


def _best_line(table: Table, words: Words) -> str:
    time = table.best.get("train_seconds")
    return words(
        "best_values",
        accuracy=words.score(table.best["accuracy"]),
        f1=words.score(table.best["f1_weighted"]),
        time="-" if time is None else words.seconds(time),
    )


def _listed(title: str, lines: list[str], words: Words) -> list[str]:
    listed = "\n".join(f"- {_escape(line)}" for line in lines)
    return [f"### {words(title)}\n\n{listed}"] if lines else []


def _failed_title(document: Document, words: Words) -> str:
    return words("failed", count=sum(len(failure.run_ids) for failure in document.failures))


def _aligned(rows: list[list[str]], left: tuple[int, ...] = (0,)) -> str:
    """Align the columns in `left` to the left and the others, which are numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if i in left else ">" for i in range(len(widths))]
    lines = [
        "  ".join(f"{c:{s}{w}}" for c, s, w in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _piped(rows: list[list[str]]) -> str:
    rule = [":---"] + ["---:"] * (len(rows[0]) - 1)
    return "\n".join(f"| {' | '.join(map(_escape, row))} |" for row in [rows[0], rule, *rows[1:]])


def _escape(text: str) -> str:
    """Return the text with the signs that Markdown would read as its own made plain."""
    return re.sub(r"[\\|_*`]", r"\\\g<0>", text).replace("<", "&lt;").replace("](", r"]\(")
