"""Load labelled texts from tables with any column names."""

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

from kinopoisk_ft.data.cleaning import list_first
from kinopoisk_ft.data.recipe import METADATA, DataRecipe
from kinopoisk_ft.data.tables import SUFFIXES, Table, read_table
from kinopoisk_ft.errors import UserError, suggest_name
from kinopoisk_ft.text import clean_name, is_number, to_one_line

log = logging.getLogger(__name__)

# The columns of METADATA that contain names, which `clean_name` normalizes.
NAMES = ("film", "author")
# How programs write a missing value as text, for example in a CSV file.
_MISSING_NAMES = ("nan", "na", "n/a", "null", "none")
# Maximum number of characters of a value in an error message.
_MAX_EXCERPT = 60
# The first matching type counts. bool precedes Number, because Python's bool is a Number, too.
_TYPE_NAMES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (str, "strings"),
    (bool, "true or false"),
    (Number, "numbers"),
    ((list, np.ndarray), "lists"),
    (dict, "objects"),
    ((date, time, timedelta), "dates or times"),
    (bytes, "bytes"),
)


def read_labelled_texts(
    table: Table, text_column: str, label_column: str, fix: str, split_column: str | None = None
) -> pd.DataFrame:
    """Read labelled texts from a table.

    Args:
        fix: advice for the error message if the text or label column is missing.
        split_column: column that assigns each row to train, val or test; None if there is none.

    Returns:
        A frame with the columns text, label, row (number from 0) and place (see `Table.places`).
        Columns of the table whose names are in METADATA, such as film, are added. If `split_column`
        is set, its values are added as the column part.

    Raises:
        UserError: a column or a label is missing, or a value has an unsupported type.
    """
    frame = pd.DataFrame(
        {
            "text": read_texts(table, text_column, fix),
            "label": _read_labels(table, label_column, fix),
            "row": range(len(table.frame)),
            "place": table.places(),
        }
    )
    missing = frame["label"].isna()
    if missing.any():
        raise UserError(
            f"{missing.sum():,} of {len(frame):,} rows have no label in '{label_column}'",
            where=list_first(frame.loc[missing, "place"]),
            fix="add the labels, or remove these rows",
        )
    for name in METADATA:
        if table.find(name) is not None:
            clean = clean_name if name in NAMES else _text_or_none
            frame[name] = table.column(name, fix).map(clean)
    if split_column is not None:
        frame["part"] = table.column(split_column, "set data.split_column").map(clean_name)
    if "grade10" in frame:
        # Invalid grades become NaN without an error, because training does not need this column.
        frame["grade10"] = pd.to_numeric(frame["grade10"], errors="coerce")
    return frame


def read_texts(table: Table, name: str, fix: str) -> pd.Series:
    """Return a column of texts, some of which may be missing; warn if all texts are numbers.

    Raises:
        UserError: the column is missing, or a value is not a string.
    """
    values = table.column(name, fix)
    wrong = [not isinstance(value, str) and not _is_missing(value) for value in values]
    if any(wrong):
        raise _type_error("text", name, values, wrong, table, fix)
    texts = [text for text in values if isinstance(text, str) and text.strip()]
    if texts and all(is_number(text.strip()) for text in texts):
        log.warning(
            "all texts in the column '%s' are numbers, for example %s; if the column is wrong, %s",
            name, texts[0], fix,
        )  # fmt: skip
    return values


def _read_labels(table: Table, name: str, fix: str) -> pd.Series:
    values = table.column(name, fix)
    nested = [isinstance(value, (list, dict, np.ndarray)) for value in values]
    if any(nested):
        raise _type_error("label", name, values, nested, table, fix)
    return values.map(clean_name).astype(object)


def _type_error(
    role: str, name: str, values: pd.Series, wrong: list[bool], table: Table, fix: str
) -> UserError:
    invalid = values[wrong]
    excerpt = to_one_line(str(invalid.iloc[0]))[:_MAX_EXCERPT]
    return UserError(
        f"{len(invalid):,} of {len(values):,} rows contain {describe_types(invalid)} in the {role} "
        f"column '{name}', for example {excerpt}",
        where=list_first(np.array(table.places())[wrong]),
        fix=f"{fix} (one {role} in each row), or store these values as strings",
    )


def _is_missing(value: Any) -> bool:
    # `pd.isna` would return an array for a list.
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text_or_none(value: Any) -> str | None:
    return None if _is_missing(value) else str(value)


def describe_types(values: Iterable[Any]) -> str:
    """Describe the types of values in words, for example "numbers and strings"."""
    kinds = dict.fromkeys(_name_type(value) for value in values if not _is_missing(value))
    return " and ".join(kinds) or "nothing"


def _name_type(value: Any) -> str:
    kinds = (name for types, name in _TYPE_NAMES if isinstance(value, types))
    return next(kinds, f"values of type {type(value).__name__}")


@dataclass(kw_only=True)
class LabelledTables(DataRecipe):
    """Base class for data sets that consist of tables with labelled texts.

    Args:
        text_column: name of the column with the texts.
        label_column: name of the column with the labels.
        class_names: class names in the order of their ids; if None, the labels are sorted.
        classes: expected number of classes; if None, any number is accepted.
        quoting: how to read quotes in .csv and .tsv files, one of QUOTING.
    """

    text_column: str
    label_column: str
    class_names: list[str] | None = None
    quoting: str = "auto"

    @abstractmethod
    def tables(self) -> Iterable[Table]:
        """Return the tables, in the same order in every run."""

    def read(self) -> pd.DataFrame:
        fix = "set data.text_column and data.label_column"
        frames = [
            read_labelled_texts(table, self.text_column, self.label_column, fix, self.split_column)
            for table in self.tables()
        ]
        frame = pd.concat(frames, ignore_index=True)
        # Each table numbers its rows from 0. Row numbers must be unique, because predictions of
        # different runs are paired by row number.
        return frame.assign(row=range(len(frame)))

    def choose_classes(self, frame: pd.DataFrame) -> tuple[str, ...]:
        found = sorted(frame["label"].unique(), key=_sort_key)
        # The names in the config are normalized in the same way as the labels.
        names = [clean_name(name) or "" for name in self.class_names or found]
        if self.class_names is None:
            _warn_about_names(frame["label"])
        if repeated := {name for name in names if names.count(name) > 1}:
            raise UserError(
                f"data.class_names contains '{min(repeated)}' twice",
                where="data.class_names",
                fix="write each class once",
            )
        for label in set(found) - set(names):
            raise UserError(
                f"the label '{label}' is not in data.class_names: {suggest_name(label, names)}",
                where=list_first(frame.loc[frame["label"] == label, "place"]),
                fix="add the label to data.class_names, or remove these rows",
            )
        if self.classes is not None and self.classes != len(names):
            raise UserError(
                f"data.classes={self.classes}, but there are {len(names)} classes: "
                f"{list_first(names)}",
                where=f"label column '{self.label_column}'",
                fix="set data.classes=null to accept any number of classes",
            )
        return tuple(names)


def _warn_about_names(labels: pd.Series) -> None:
    counts = labels.value_counts()
    for name in counts.index:
        if name.casefold() in _MISSING_NAMES:
            log.warning(
                "%d rows have the label '%s'; if it means that they have no label, remove them",
                counts[name], name,
            )  # fmt: skip
    for _, same in counts.groupby(counts.index.str.casefold()):
        if len(same) > 1:
            sizes = ", ".join(f"'{name}' ({size:,} rows)" for name, size in same.items())
            log.warning(
                "class names differ only in case: %s; if they are one class, rename them", sizes
            )


def _sort_key(name: str) -> tuple[float, str]:
    # Numbers are sorted by value ("2" before "10"), and come before names.
    try:
        number = float(name)
    except ValueError:
        return math.inf, name
    # `float` also accepts "nan" and "inf", which are names here.
    return (number if math.isfinite(number) else math.inf), name


@dataclass(kw_only=True)
class LocalFile(LabelledTables):
    """One table on disk (data=file), in any format that `read_table` supports."""

    path: str | None = None

    def tables(self) -> Iterable[Table]:
        if self.path is None:
            fix = f"set data.path=<file> to a file that ends in {', '.join(SUFFIXES)}"
            raise UserError("data=file needs the path of a file", where="data.path", fix=fix)
        yield read_table(self.path, self.quoting)
