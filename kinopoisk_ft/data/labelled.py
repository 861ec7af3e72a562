"""Labelled texts out of tables, whatever their columns are called."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kinopoisk_ft.data.cleaning import shown
from kinopoisk_ft.data.files import Table
from kinopoisk_ft.data.recipe import METADATA, DataRecipe
from kinopoisk_ft.errors import UserError, nearest


def labelled_texts(
    table: Table, text_column: str, label_column: str, fix: str, split_column: str | None = None
) -> pd.DataFrame:
    """Return the columns text, label, row, place, part if asked, and what METADATA the table has.

    Raises UserError on a missing column (with `fix`) and on rows without a label, with their lines.
    """
    frame = pd.DataFrame(
        {
            "text": table.column(text_column, fix),
            "label": table.column(label_column, fix).map(_class_name).astype(object),
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
        if name in table.frame:
            frame[name] = table.frame[name].map(_text_or_none)
    if split_column is not None:
        frame["part"] = table.column(split_column, "set data.split_column")
    if "grade10" in frame:
        frame["grade10"] = pd.to_numeric(frame["grade10"], errors="coerce")
    return frame


def _text_or_none(value: Any) -> str | None:
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)


def _class_name(value: Any) -> str | None:
    """Return a label as the name of a class: 1 and 1.0 are the same; None where there is none."""
    if isinstance(value, str):
        return value or None
    if not pd.api.types.is_scalar(value) or pd.isna(value):
        return None
    if isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            return None
        if value.is_integer():
            return str(int(value))
    return str(value)


@dataclass(kw_only=True)
class LabelledTables(DataRecipe):
    """Tables whose text and label columns are named by the user.

    Args:
        text_column: holds the texts.
        label_column: holds the labels: names or numbers.
        class_names: the labels in the order of their numbers; None sorts those found.
        classes: their number, as a check; None takes what is found.
    """

    text_column: str
    label_column: str
    class_names: list[str] | None = None

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
        names = [str(name) for name in self.class_names or found]
        for label in set(found) - set(names):
            raise UserError(
                f"label '{label}' is not among data.class_names: {nearest(label, names)}",
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


def _numbers_first(name: str) -> tuple[float, str]:
    """Order '2' before '10', and both before names."""
    try:
        number = float(name)
    except ValueError:
        return math.inf, name
    return (number if math.isfinite(number) else math.inf), name
