"""Convert the predictions of a run between a table and arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.text import clean_name, fold_name, to_one_line

# Optional columns that describe each review. Some of them define the slices of a comparison.
#   characters: int, the length of the text.
#   truncated: the fraction of characters that the model did not read.
#   film: str.
#   film_in_train: bool.
#   grade10: 1 to 10, or 0 for no grade.
#   group: int, equal for reviews that the split keeps together.
#   text: the first TEXT_CHARACTERS characters.
FACTS = ("characters", "truncated", "film", "film_in_train", "grade10", "group", "text")
# Length of the stored and published excerpt of a review, short enough to be a quotation.
TEXT_CHARACTERS = 200
# Prefix of the columns with the probability of each class.
PREFIX = "p_"
# What `pandas.read_parquet` raises for an unreadable file. Damaged metadata of pandas lead to
# KeyError and TypeError.
PARQUET_ERRORS = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)

Mismatch = Literal["rows", "labels", "classes"]


# The generated `__eq__` would fail, because a comparison of arrays has no single truth value.
@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Predictions of one run for N test reviews, sorted by row.

    Args:
        rows: (N,) int64, row number of each review in the source data, from 0.
        labels: (N,) int64.
        predicted: (N,) int64.
        probabilities: (N, classes) float64.
        facts: the optional columns that the run recorded, such as film and text.
    """

    rows: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    facts: pd.DataFrame

    @classmethod
    def of(cls, table: pd.DataFrame, where: str) -> Predictions:
        """Create predictions from a table with the columns that `as_table` returns.

        Args:
            where: source of the table, for error messages.

        Raises:
            UserError: the table is invalid.
        """
        # The order of these columns is the order of the class ids.
        names = [str(c) for c in table.columns if str(c).startswith(PREFIX)]
        missing = [c for c in ("row", "label", "predicted") if c not in table]
        if missing or len(names) < 2:
            what = ", ".join(missing) or f"{PREFIX}<class> for at least two classes"
            raise _unusable(f"columns are missing from the predictions: {what}", where)
        if table["row"].duplicated().any():
            first = table.loc[table["row"].duplicated(), "row"].iloc[0]
            raise _unusable(f"the predictions contain row {first} more than once", where)
        columns = ["row", "label", "predicted", *names]
        numbers = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
        if not len(table) or not np.isfinite(numbers).all():
            raise _unusable("the predictions are empty or contain text, NaN or infinity", where)
        # Other classes would be counted in the confusion matrix of another run.
        classes = numbers[:, 1:3]
        if (numbers[:, :3] % 1).any() or (classes < 0).any() or (classes >= len(names)).any():
            what = f"row numbers must be whole, and classes must be 0 to {len(names) - 1}"
            raise _unusable(f"the predictions contain invalid numbers: {what}", where)
        # Runs are compared position by position, so all of them need the same order of rows.
        table = table.sort_values("row")
        return cls(
            rows=table["row"].to_numpy(np.int64),
            labels=table["label"].to_numpy(np.int64),
            predicted=table["predicted"].to_numpy(np.int64),
            probabilities=table[names].to_numpy(np.float64),
            # Class names from somebody else's store may contain control characters.
            class_names=tuple(to_one_line(name.removeprefix(PREFIX)) for name in names),
            facts=table[[c for c in FACTS if c in table]].reset_index(drop=True),
        )

    @classmethod
    def read(cls, file: Path) -> Predictions:
        """Read the predictions.parquet of a run.

        Raises:
            UserError: the file cannot be read, or the table is invalid.
        """
        try:
            table = pd.read_parquet(file)
        except PARQUET_ERRORS as error:
            raise UserError(
                f"the predictions cannot be read: {to_one_line(str(error))[:200]}",
                where=str(file),
                fix="give the output_dir of a finished run, or its predictions.parquet",
            ) from error
        return cls.of(table, str(file))

    @staticmethod
    def list_classes(tables: Iterable[tuple[str, pd.DataFrame]]) -> tuple[str, ...]:
        """Return the sorted names of all classes in the columns `label` and `predicted`.

        Args:
            tables: (source, table) pairs; the source is for error messages.

        Raises:
            UserError: a table lacks one of the two columns or a value in them, or there are fewer
                than two classes.
        """
        names: set[str] = set()
        for where, table in tables:
            for column in ("label", "predicted"):
                if column not in table:
                    known = ", ".join(map(str, table.columns))
                    fix = f"rename one of the columns {known} to '{column}'"
                    raise UserError(f"there is no column '{column}'", where=where, fix=fix)
                values = table[column].map(clean_name)
                if values.isna().any():
                    row = int(np.flatnonzero(values.isna())[0])
                    what = f"the column '{column}' has no value in row {row}, counted from 0"
                    raise UserError(what, where=where, fix="remove such rows")
                names |= set(values)
        if len(names) < 2:
            what = f"all labels and predictions are '{''.join(names)}'"
            raise UserError(what, where="the prediction files", fix="use two or more classes")
        return tuple(sorted(names))

    @classmethod
    def from_names(
        cls, table: pd.DataFrame, class_names: tuple[str, ...], where: str
    ) -> Predictions:
        """Create predictions from a table that another tool may have written.

        The table has class names, and no probabilities.

        Args:
            table: columns label and predicted; optionally row, group or film.
            class_names: as `list_classes` returns them.
            where: source of the table, for error messages.

        Raises:
            UserError: the numbers in `row` are not whole, or one occurs more than once.
        """
        ids = {name: number for number, name in enumerate(class_names)}
        labels, predicted = (
            table[column].map(clean_name).map(ids).to_numpy(np.int64)
            for column in ("label", "predicted")
        )
        made = pd.DataFrame({"label": labels, "predicted": predicted})
        made["row"] = np.arange(len(table))
        if "row" in table:
            # Tables contain numbers as strings or Python objects, depending on the file format.
            rows = table["row"].map(clean_name)
            # int64 holds all numbers of 18 digits.
            if not rows.str.fullmatch(r"-?\d{1,18}").fillna(False).all():
                what = (
                    "the column 'row' contains values that are not whole numbers of up to 18 digits"
                )
                fix = "number the test examples, or leave the column out"
                raise UserError(what, where=where, fix=fix)
            made["row"] = rows.astype(np.int64).to_numpy()
        # `of` needs probabilities, so the predicted class gets 1 and the others get 0.
        for number, name in enumerate(class_names):
            made[f"{PREFIX}{name}"] = (predicted == number).astype(np.float64)
        if kind := next((name for name in ("group", "film") if name in table), None):
            codes = pd.factorize(table[kind].map(clean_name))[0]
            # Each example without a known group is a separate group.
            made["group"] = np.where(codes < 0, len(table) + np.arange(len(table)), codes)
        return cls.of(made, where)

    @property
    def groups(self) -> np.ndarray | None:
        """Return the group of each review (N,), or None if the split has no groups."""
        return self.facts["group"].to_numpy() if "group" in self.facts else None

    def mismatch(self, other: Predictions) -> Mismatch | None:
        """Return what prevents a review-by-review comparison of two runs, or None."""
        if self.class_names != other.class_names:
            return "classes"
        if not np.array_equal(self.rows, other.rows):
            return "rows"
        return None if np.array_equal(self.labels, other.labels) else "labels"


def as_table(
    part: pd.DataFrame,
    probabilities: np.ndarray,
    class_names: tuple[str, ...],
    train: pd.DataFrame,
) -> pd.DataFrame:
    """Return the predictions as a table with one row per review.

    Args:
        part: the reviews. The columns text, label and row are required. The columns film, grade10,
            group and truncated are optional.
        probabilities: (N, classes), in the order of `part`.
        train: the train split. If films are known, the column `film_in_train` of the result tells
            whether the train split contains the film of a review.
    """
    table = pd.DataFrame({"row": part["row"].to_numpy(), "label": part["label"].to_numpy()})
    table["predicted"] = probabilities.argmax(axis=1)
    for i, name in enumerate(class_names):
        table[f"{PREFIX}{name}"] = probabilities[:, i].astype(np.float64)
    table["characters"] = part["text"].str.len().to_numpy(np.int64)
    table["text"] = part["text"].str.slice(0, TEXT_CHARACTERS).to_numpy()
    for name in ("truncated", "film", "grade10", "group"):
        if name in part:
            table[name] = part[name].to_numpy()
    if "film" in part and "film" in train:
        films, known = part["film"].map(fold_name), train["film"].map(fold_name).dropna()
        # If the film is unknown, the value is None, which only an object column can contain.
        seen = films.isin(known).astype(object)
        table["film_in_train"] = seen.where(films.notna(), None).to_numpy()
    return table


def _unusable(what: str, where: str) -> UserError:
    return UserError(what, where=where, fix="repeat this run, or delete it from the store")
