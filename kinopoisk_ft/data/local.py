"""A local file of labelled texts."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, time, timedelta
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd

from kinopoisk_ft.data.cleaning import shown
from kinopoisk_ft.data.recipe import METADATA, DataRecipe
from kinopoisk_ft.data.tables import SUFFIXES, Table, read_table
from kinopoisk_ft.errors import UserError, suggest_name
from kinopoisk_ft.text import clean_name, is_number, to_one_line

log = logging.getLogger(__name__)

NAMES = ("film", "author")  # of METADATA, compared as names are
_EXCERPT = 60  # characters
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (str, "texts"),
    (bool, "true or false"),
    (Number, "numbers"),
    ((list, np.ndarray), "lists"),
    (dict, "objects"),
    ((date, time, timedelta), "dates or times"),
    (bytes, "bytes"),
)


def labelled_texts(
    table: Table, text_column: str, label_column: str, fix: str, split_column: str | None = None
) -> pd.DataFrame:
    """Return the columns text, label, row, place, part if asked, and what METADATA the table has.

    Raises UserError on a missing column (with `fix`), and with their lines on rows without a label,
    and on rows whose text or label is no text.
    """
    frame = pd.DataFrame(
        {
            "text": text_values(table, text_column, fix),
            "label": _class_names(table, label_column, fix),
            "row": range(len(table.frame)),
            "place": table.places(),
        }
    )
    missing = frame["label"].isna()
    if missing.any():
        raise UserError(
            f"{missing.sum():,} of {len(frame):,} rows have no label in '{label_column}'",
            where=shown(frame.loc[missing, "place"]),
            fix="label or remove these rows",
        )
    for name in METADATA:
        if table.find(name) is not None:
            clean = clean_name if name in NAMES else _text_or_none
            frame[name] = table.column(name, fix).map(clean)
    if split_column is not None:
        frame["part"] = table.column(split_column, "set data.split_column").map(clean_name)
    if "grade10" in frame:
        frame["grade10"] = pd.to_numeric(frame["grade10"], errors="coerce")
    return frame


def text_values(table: Table, name: str, fix: str) -> pd.Series:
    """Return the texts of a column, where rows may lack one.

    Raises UserError on a missing column (with `fix`) and on rows that hold something else, and
    warns where all texts are numbers.
    """
    values = table.column(name, fix)
    other = [not isinstance(value, str) and not _is_missing(value) for value in values]
    if any(other):
        raise _not_a("text", name, values, other, table, fix)
    texts = [text for text in values if isinstance(text, str) and text.strip()]
    if texts and all(is_number(text.strip()) for text in texts):
        log.warning("all texts in the column '%s' are numbers, such as %s: %s", name, texts[0], fix)
    return values


def _class_names(table: Table, name: str, fix: str) -> pd.Series:
    values = table.column(name, fix)
    nested = [isinstance(value, (list, dict, np.ndarray)) for value in values]
    if any(nested):
        raise _not_a("label", name, values, nested, table, fix)
    return values.map(clean_name).astype(object)


def _not_a(
    role: str, name: str, values: pd.Series, wrong: list[bool], table: Table, fix: str
) -> UserError:
    """Return the error for rows with values that are no text or label."""
    found = values[wrong]
    excerpt = to_one_line(str(found.iloc[0]))[:_EXCERPT]
    return UserError(
        f"{len(found):,} of {len(values):,} rows hold {kinds_of(found)} in the {role} column "
        f"'{name}', such as {excerpt}",
        where=shown(np.array(table.places())[wrong]),
        fix=f"{fix} to a column with one {role} in each row, or write these values as texts",
    )


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text_or_none(value: Any) -> str | None:
    return None if _is_missing(value) else str(value)


def kinds_of(values: Iterable[Any]) -> str:
    """Return in words what values are: "numbers and texts"."""
    kinds = dict.fromkeys(_kind(value) for value in values if not _is_missing(value))
    return " and ".join(kinds) or "nothing"


def _kind(value: Any) -> str:
    kinds = (name for types, name in _KINDS if isinstance(value, types))
    return next(kinds, f"values of type {type(value).__name__}")


@dataclass(kw_only=True)
class LabelledTables(DataRecipe):
    """Tables whose text and label columns are named by the user.

    Args:
        text_column: holds the texts.
        label_column: holds the labels: names or numbers.
        class_names: the labels in the order of their numbers; None sorts those found.
        classes: their number, as a check; None takes what is found.
        quoting: of .csv and .tsv files, one of QUOTING.
    """

    text_column: str
    label_column: str
    class_names: list[str] | None = None
    quoting: str = "auto"

    @abstractmethod
    def tables(self) -> Iterable[Table]:
        """Yield the tables, in an order that does not change from run to run."""

    def read(self) -> pd.DataFrame:
        fix = "set data.text_column and data.label_column"
        frames = [
            labelled_texts(table, self.text_column, self.label_column, fix, self.split_column)
            for table in self.tables()
        ]
        frame = pd.concat(frames, ignore_index=True)
        return frame.assign(row=range(len(frame)))

    def choose_classes(self, frame: pd.DataFrame) -> tuple[str, ...]:
        found = sorted(frame["label"].unique(), key=_numbers_first)
        names = [clean_name(name) or "" for name in self.class_names or found]
        if self.class_names is None:
            _warn_of_case(frame["label"])
        for label in set(found) - set(names):
            raise UserError(
                f"label '{label}' is not among data.class_names: {suggest_name(label, names)}",
                where=shown(frame.loc[frame["label"] == label, "place"]),
                fix="name it in data.class_names, or remove these rows",
            )
        if self.classes is not None and self.classes != len(names):
            raise UserError(
                f"data.classes={self.classes}, but there are {len(names)}: {shown(names)}",
                where=f"label column '{self.label_column}'",
                fix="data.classes=null takes the classes as found",
            )
        return tuple(names)


def _warn_of_case(labels: pd.Series) -> None:
    """Warn of classes whose names differ only in case: they may be one."""
    counts = labels.value_counts()
    for _, same in counts.groupby(counts.index.str.casefold()):
        if len(same) > 1:
            sizes = ", ".join(f"'{name}' ({size:,} rows)" for name, size in same.items())
            log.warning("classes differ only in case: %s; if they are one, rename them", sizes)


def _numbers_first(name: str) -> tuple[float, str]:
    """Order '2' before '10', and both before names."""
    try:
        number = float(name)
    except ValueError:
        return math.inf, name
    return (number if math.isfinite(number) else math.inf), name


@dataclass(kw_only=True)
class LocalFile(LabelledTables):
    """One table on disk, in any format that `read_table` knows."""

    path: str | None = None

    def tables(self) -> Iterable[Table]:
        if self.path is None:
            fix = f"give data.path=<file>, one of {', '.join(SUFFIXES)}"
            raise UserError("data=file needs a file", where="data.path", fix=fix)
        yield read_table(self.path, self.quoting)
