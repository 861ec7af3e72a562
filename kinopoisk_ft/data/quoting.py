"""Find quotes that swallow rows: a text that merely starts with a quote is no quoted field."""

from __future__ import annotations

import logging
from collections.abc import Container
from pathlib import Path

from kinopoisk_ft.data.cleaning import shown
from kinopoisk_ft.errors import UserError

log = logging.getLogger(__name__)

# "csv" reads quoted fields (RFC 4180), "none" reads quotes as plain characters, "auto" is "csv"
# with a check that no quoted field holds rows.
QUOTING = ("auto", "csv", "none")
_LOOKED_AT = 4  # lines of a field: if it swallowed rows, its first lines are rows
_FIX = (
    "data.quoting=none (predict: --quoting none) reads quotes as plain characters; "
    "data.quoting=csv keeps these lines as one text"
)


def check_spanning(
    rows: list[list[str]], lines: list[int], spanning: dict[int, int], delimiter: str, path: Path
) -> None:
    """Check that the lines of quoted fields are not rows of the table.

    A line is taken for a row if it has as many fields as the header and, in each column with few
    different values (labels, films), a value that other rows have. Two such lines in one field
    raise a UserError. If lines agree only in the number of fields, a warning names them.

    Args:
        lines: the first line of each row.
        spanning: the last line of each row whose quoted fields hold line breaks.
    """
    candidates = [row for row in spanning if _may_hold_rows(rows[row], delimiter)]
    if not candidates:
        return
    known = _known_values(rows, spanning)
    swallowing, doubtful = [], []
    for row in candidates:
        plain = delimiter.join(rows[row]).splitlines()[:_LOOKED_AT]
        split = [fields for line in plain if len(fields := line.split(delimiter)) == len(rows[row])]
        place = f"{path}:{lines[row]}-{spanning[row]}"
        if known and sum(_is_row(fields, known) for fields in split) >= 2:
            swallowing.append(place)
        elif len(split) == len(plain):
            doubtful.append(place)
    if swallowing:
        what = (
            f"quoted fields that hold whole rows: {len(swallowing):,}; the file seems not to quote "
        )
        raise UserError(what + "its fields", where=shown(swallowing), fix=_FIX)
    # In a file that quotes its texts, few of them have the fields of a row in each line.
    if 2 * len(doubtful) > len(spanning):
        text = "%d rows span several lines, each of which could be a row. If the file does not "
        text += "quote its fields, rows are lost; %s: %s"
        log.warning(text, len(doubtful), _FIX, shown(doubtful))


def _may_hold_rows(fields: list[str], delimiter: str) -> bool:
    """Return whether the first two lines of a row have as many fields as the row, quotes ignored.

    That clears most rows of a file that quotes its fields, without a copy of their texts.
    """
    before, last = 0, len(fields) - 1
    for field in fields:
        end = field.find("\n")
        if end >= 0:
            second = field.find("\n", end + 1)
            return before + field.count(delimiter, 0, end) == last and (
                second < 0 or field.count(delimiter, end, second) == last
            )
        before += field.count(delimiter) + 1
    return True


def _known_values(rows: list[list[str]], skipped: Container[int]) -> dict[int, set[str]]:
    """Return the values of each column in which most rows repeat another row's value."""
    columns = zip(*(row for i, row in enumerate(rows) if i not in skipped), strict=True)
    values = [(len(column), set(column)) for column in columns]
    return {i: found for i, (size, found) in enumerate(values) if 2 * len(found) <= size}


def _is_row(fields: list[str], known: dict[int, set[str]]) -> bool:
    return all(fields[column] in values for column, values in known.items())
