"""Hold one run's answers by review: as a table on disk and as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.text import fold_name, to_one_line

# Facts of a review besides its label. Slices of a comparison are formed by them.
FACTS = ("characters", "truncated", "film", "film_in_train", "grade10", "group", "text")
# Length of the excerpt of a review that is kept and published: short enough to be a quotation.
TEXT_CHARACTERS = 200
PREFIX = "p_"

Mismatch = Literal["rows", "labels", "classes"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Answers of one run to N reviews in the order of their rows.

    Args:
        rows: (N,) int64, the review's row in the source.
        labels: (N,) int64.
        predicted: (N,) int64.
        probabilities: (N, classes) float64.
        facts: the columns of `FACTS` that the run recorded: characters (int), truncated (share of
            them that the model did not read), film (str), film_in_train (bool), grade10 (1 to 10,
            0 if none was given), group (int, the same for reviews that the split keeps together),
            text (its first `TEXT_CHARACTERS`).
    """

    rows: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    facts: pd.DataFrame

    @classmethod
    def of(cls, table: pd.DataFrame, where: str) -> Predictions:
        """Read a table as `as_table` makes it. Raises UserError, with `where`, on any other."""
        names = [str(c) for c in table.columns if str(c).startswith(PREFIX)]
        missing = [c for c in ("row", "label", "predicted") if c not in table]
        if missing or len(names) < 2:
            what = ", ".join(missing) or f"{PREFIX}<class> of two classes"
            raise _unusable(f"the predictions lack {what}", where)
        if table["row"].duplicated().any():
            first = table.loc[table["row"].duplicated(), "row"].iloc[0]
            raise _unusable(f"the predictions have row {first} twice", where)
        numbers = table[names].to_numpy(np.float64)
        if not len(table) or not np.isfinite(numbers).all():
            raise _unusable("the predictions are empty or not numbers", where)
        table = table.sort_values("row")
        return cls(
            rows=table["row"].to_numpy(np.int64),
            labels=table["label"].to_numpy(np.int64),
            predicted=table["predicted"].to_numpy(np.int64),
            probabilities=table[names].to_numpy(np.float64),
            class_names=tuple(to_one_line(name.removeprefix(PREFIX)) for name in names),
            facts=table[[c for c in FACTS if c in table]].reset_index(drop=True),
        )

    @property
    def groups(self) -> np.ndarray | None:
        """Return the group of each review (N,), None if the split keeps no reviews together."""
        return self.facts["group"].to_numpy() if "group" in self.facts else None

    def mismatch(self, other: Predictions) -> Mismatch | None:
        """Return why two runs cannot be compared review by review, None if they can."""
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
    """Return one row a review: row, label, predicted, p_<class>, and the known facts of `FACTS`.

    Args:
        part: the reviews: text, label, row and, where known, film, grade10, group, truncated.
        probabilities: (N, classes), in the order of `part`.
        train: the reviews of training, whose films count as seen.
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
        seen = films.isin(known).astype(object)
        table["film_in_train"] = seen.where(films.notna(), None).to_numpy()
    return table


def _unusable(what: str, where: str) -> UserError:
    return UserError(what, where=where, fix="train this run again, or leave it out")
