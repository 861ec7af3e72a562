"""Define rules for splitting rows: at random, by group, and by date.

A rule holds out a fraction of the rows, or divides all rows into folds. It takes and returns sorted
arrays of row positions, from 0. Every rule keeps near-duplicates together. If there are too few
rows or groups, a rule raises ValueError.
"""

from __future__ import annotations

import re
from datetime import date

import numpy as np
import pandas as pd
from sklearn.model_selection import (
    GroupShuffleSplit,
    StratifiedGroupKFold,
    StratifiedKFold,
    train_test_split,
)

from kinopoisk_ft.data.cleaning import list_first
from kinopoisk_ft.errors import UserError

# Number of random sets of held-out films (or authors), of which the best balanced one is used.
DRAWS = 300


class RandomRule:
    """Splits near-duplicate groups at random, stratified by the label of their first row."""

    def __init__(self, frame: pd.DataFrame, near: np.ndarray, seed: int) -> None:
        self.labels, self.near, self.seed = frame["label"].to_numpy(), near, seed

    def hold_out(self, rows: np.ndarray, share: float) -> np.ndarray:
        """Draw the fraction `share` of the near-duplicate groups, and return their rows."""
        groups, first = np.unique(self.near[rows], return_index=True)
        labels = self.labels[rows[first]]
        _, test = train_test_split(groups, test_size=share, random_state=self.seed, stratify=labels)
        return rows[np.isin(self.near[rows], test)]

    def folds(self, count: int) -> list[np.ndarray]:
        """Assign near-duplicate groups to folds, stratified by the label of their first row."""
        groups, first = np.unique(self.near, return_index=True)
        splitter = StratifiedKFold(count, shuffle=True, random_state=self.seed)
        parts = (groups[test] for _, test in splitter.split(groups, self.labels[first]))
        return [np.flatnonzero(np.isin(self.near, part)) for part in parts]


class GroupRule:
    """Splits rows by film or author, with similar class proportions in each split."""

    def __init__(self, frame: pd.DataFrame, groups: np.ndarray, seed: int) -> None:
        self.labels, self.groups, self.seed = frame["label"].to_numpy(), groups, seed

    def hold_out(self, rows: np.ndarray, share: float) -> np.ndarray:
        """Draw random sets of groups, and return the rows of the best set.

        The best set minimizes the sum of |held-out fraction of a class - `share`| over all classes.
        """
        draws = GroupShuffleSplit(DRAWS, test_size=share, random_state=self.seed)
        labels = self.labels[rows]
        totals = np.bincount(labels)

        def measure_imbalance(test: np.ndarray) -> float:
            # The maximum avoids 0 / 0 for a class that `rows` do not contain. The sum omits it.
            shares = np.bincount(labels[test], minlength=len(totals)) / np.maximum(totals, 1)
            return float(np.abs(shares - share)[totals > 0].sum())

        # The draws are generated one by one, so they are never all in memory.
        candidates = (test for _, test in draws.split(rows, groups=self.groups[rows]))
        return np.sort(rows[min(candidates, key=measure_imbalance)])

    def folds(self, count: int) -> list[np.ndarray]:
        """Assign whole groups to folds with scikit-learn's StratifiedGroupKFold."""
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=self.seed)
        return [test for _, test in splitter.split(self.labels, self.labels, self.groups)]


class DateRule:
    """Splits rows by date, and holds out the newest rows.

    The rows of a near-duplicate group stay together, and all get the date of the newest of these
    rows. Therefore, train contains no text that is newer than the first day of the test split.
    Rows of the day on which two splits meet can be in both. Folds are periods of time, oldest
    first. With folds, training also uses rows that are newer than the test fold (blocked
    cross-validation, Bergmeir and Benítez, 2012).
    """

    def __init__(self, frame: pd.DataFrame, near: np.ndarray, seed: int) -> None:
        days = read_days(frame)
        if len(set(days.tolist())) == 1:
            raise UserError(
                "data.split=time is not possible, because all reviews have the same date",
                where=f"column 'date': {frame['date'].iloc[0]}",
                fix="choose another data.split",
            )
        newest = pd.Series(days).groupby(near).transform("max").to_numpy()
        self.near = near
        # Sorting by group within a date makes near-duplicates adjacent.
        # (N,): the positions of all rows, oldest first. `lexsort` sorts by its last key first.
        self.order = np.lexsort((near, newest))

    def hold_out(self, rows: np.ndarray, share: float) -> np.ndarray:
        """Return the newest rows, which are about the fraction `share` of all given rows."""
        ordered = self.order[np.isin(self.order, rows)]
        # The number is rounded up, as in scikit-learn's `train_test_split`.
        cut = len(ordered) - int(np.ceil(share * len(ordered)))
        return np.sort(ordered[self._move_cut_between_groups(ordered, cut) :])

    def folds(self, count: int) -> list[np.ndarray]:
        """Divide the rows into periods of time with about equal numbers of rows."""
        size = len(self.order)
        starts = (size * i // count for i in range(1, count))
        cuts = [self._move_cut_between_groups(self.order, start) for start in starts]
        return [np.sort(part) for part in np.split(self.order, cuts)]

    def _move_cut_between_groups(self, ordered: np.ndarray, cut: int) -> int:
        # The cut moves back, so that the whole group is in the newer part.
        while 0 < cut < len(ordered) and self.near[ordered[cut]] == self.near[ordered[cut - 1]]:
            cut -= 1
        return cut


# "мар" (March) is listed before "ма" (May, "мая"), so that "марта" means March.
_MONTHS = ("янв", "фев", "мар", "апр", "ма", "июн", "июл", "авг", "сен", "окт", "ноя", "дек")
# A time of day may follow the year, but no further digit: "1.2.20091" is not a date.
_DATES = (
    re.compile(r"(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})(?:[T ].*)?"),
    re.compile(r"(?P<day>\d{1,2})\.(?P<month>\d{1,2})\.(?P<year>\d{4})(?:\D.*)?"),
    re.compile(r"(?P<day>\d{1,2})\s+(?P<month>[а-я]+)\s+(?P<year>\d{4})(?:\D.*)?", re.IGNORECASE),
)


def parse_date(text: object) -> date | None:
    """Parse a date such as 2009-03-07, 7.3.2009 or 7 марта 2009; a time of day may follow.

    Returns:
        The date, or None if the value is not a string with a valid date.
    """
    if not isinstance(text, str):
        return None
    matches = (pattern.fullmatch(text.strip()) for pattern in _DATES)
    if (match := next(filter(None, matches), None)) is None:
        return None
    name = match["month"].lower()
    months = (number for number, start in enumerate(_MONTHS, 1) if name.startswith(start))
    month = int(name) if name.isdigit() else next(months, 0)
    # `date` raises ValueError for 31 February, and for month 0, which stands for an unknown name.
    try:
        return date(int(match["year"]), month, int(match["day"]))
    except ValueError:
        return None


def read_days(frame: pd.DataFrame) -> np.ndarray:
    """Convert the column `date` to day numbers (N,), int64, as in `date.toordinal`.

    Raises:
        UserError: a date is missing or cannot be parsed.
    """
    dates = [parse_date(value) for value in frame["date"]]
    wrong = np.array([day is None for day in dates])
    if wrong.any():
        value = frame.loc[wrong, "date"].iloc[0]
        raise UserError(
            f"{wrong.sum():,} of {len(frame):,} rows have no valid date, for example {value!r}",
            where=list_first(frame.loc[wrong, "place"]),
            fix="write dates as 2009-03-07, or choose another data.split",
        )
    return np.array([day.toordinal() for day in dates if day is not None], dtype=np.int64)
