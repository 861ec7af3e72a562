"""How rows are held out: which belong together, and which of them go.

A rule holds out a share of some rows, or cuts all rows into folds; near-duplicates always go
together.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Protocol

import numpy as np
import pandas as pd
from sklearn.model_selection import (
    GroupShuffleSplit,
    StratifiedGroupKFold,
    StratifiedKFold,
    train_test_split,
)

from kinopoisk_ft.data.cleaning import shown
from kinopoisk_ft.errors import UserError

DRAWS = 300  # random choices of films of which the best balanced is taken


class Rule(Protocol):
    """The verbs of a rule; rows are positions, and come back sorted."""

    def hold_out(self, rows: np.ndarray, share: float) -> np.ndarray:
        """Return about `share` of the rows. Raises ValueError where that cannot be done."""
        ...

    def folds(self, count: int) -> list[np.ndarray]:
        """Return all rows in `count` parts. Raises ValueError where that cannot be done."""
        ...


class ByChance:
    """At random, stratified by label: near-duplicates go with the first of them."""

    def __init__(self, frame: pd.DataFrame, near: np.ndarray, seed: int) -> None:
        self.labels, self.near, self.seed = frame["label"].to_numpy(), near, seed

    def hold_out(self, rows: np.ndarray, share: float) -> np.ndarray:
        """Return rows whose first near-duplicate is drawn."""
        groups, first = np.unique(self.near[rows], return_index=True)
        labels = self.labels[rows[first]]
        _, held = train_test_split(groups, test_size=share, random_state=self.seed, stratify=labels)
        return rows[np.isin(self.near[rows], held)]

    def folds(self, count: int) -> list[np.ndarray]:
        """Return the folds of scikit-learn's StratifiedKFold over groups of near-duplicates."""
        groups, first = np.unique(self.near, return_index=True)
        cut = StratifiedKFold(count, shuffle=True, random_state=self.seed)
        parts = (groups[held] for _, held in cut.split(groups, self.labels[first]))
        return [np.flatnonzero(np.isin(self.near, part)) for part in parts]


class ByGroup:
    """Whole groups, balanced: films, or authors."""

    def __init__(self, frame: pd.DataFrame, groups: np.ndarray, seed: int) -> None:
        self.labels, self.groups, self.seed = frame["label"].to_numpy(), groups, seed

    def hold_out(self, rows: np.ndarray, share: float) -> np.ndarray:
        """Return the best of many draws: each class gives as near to `share` as films allow."""
        draws = GroupShuffleSplit(DRAWS, test_size=share, random_state=self.seed)
        labels = self.labels[rows]
        totals = np.bincount(labels)

        def imbalance(held: np.ndarray) -> float:
            shares = np.bincount(labels[held], minlength=len(totals)) / np.maximum(totals, 1)
            return float(np.abs(shares - share)[totals > 0].sum())

        held = (held for _, held in draws.split(rows, groups=self.groups[rows]))
        return np.sort(rows[min(held, key=imbalance)])

    def folds(self, count: int) -> list[np.ndarray]:
        """Return the folds of scikit-learn's StratifiedGroupKFold."""
        cut = StratifiedGroupKFold(count, shuffle=True, random_state=self.seed)
        return [held for _, held in cut.split(self.labels, self.labels, self.groups)]


class ByDate:
    """The newest rows; near-duplicates count as of the newest of them, so that none is foreseen.

    Folds are stretches of time, the oldest first: around a fold in the middle, training sees what
    came later (Bergmeir and Benítez, 2012, call it blocked cross-validation).
    """

    def __init__(self, frame: pd.DataFrame, near: np.ndarray, seed: int) -> None:
        newest = pd.Series(days(frame)).groupby(near).transform("max").to_numpy()
        self.near = near
        self.order = np.lexsort((near, newest))

    def hold_out(self, rows: np.ndarray, share: float) -> np.ndarray:
        """Return the newest rows."""
        ordered = self.order[np.isin(self.order, rows)]
        cut = len(ordered) - int(np.ceil(share * len(ordered)))
        return np.sort(ordered[self._between_groups(ordered, cut) :])

    def folds(self, count: int) -> list[np.ndarray]:
        """Return stretches of about equal numbers of rows."""
        size = len(self.order)
        cuts = [self._between_groups(self.order, size * i // count) for i in range(1, count)]
        return [np.sort(part) for part in np.split(self.order, cuts)]

    def _between_groups(self, ordered: np.ndarray, cut: int) -> int:
        """Move a cut back to where no near-duplicates stand on both sides."""
        while 0 < cut < len(ordered) and self.near[ordered[cut]] == self.near[ordered[cut - 1]]:
            cut -= 1
        return cut


_MONTHS = ("янв", "фев", "мар", "апр", "ма", "июн", "июл", "авг", "сен", "окт", "ноя", "дек")
_ISO = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})(?:[T ].*)?")
_DOTTED = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?:\D.*)?")
_WRITTEN = re.compile(r"(\d{1,2})\s+([а-я]+)\s+(\d{4})(?:\D.*)?", re.IGNORECASE)


def parse_date(text: object) -> date | None:
    """Return the day that a text names, None where it names none; a time of day may follow."""
    if not isinstance(text, str):
        return None
    text = text.strip()
    try:
        if found := _ISO.fullmatch(text):
            year, month, day = map(int, found.groups())
            return date(year, month, day)
        if found := _DOTTED.fullmatch(text):
            day, month, year = map(int, found.groups())
            return date(year, month, day)
        if found := _WRITTEN.fullmatch(text):
            name = found[2].lower()
            # "ма" stands for "мая", so "март" has to be looked for first: it comes first.
            month = next((i for i, m in enumerate(_MONTHS, 1) if name.startswith(m)), 0)
            return date(int(found[3]), month, int(found[1]))
    except ValueError:  # a 31st of February, or a word that is no month
        return None
    return None


def days(frame: pd.DataFrame) -> np.ndarray:
    """Return the column `date` as day numbers (N,); raises UserError that names unreadable ones."""
    found = [parse_date(value) for value in frame["date"]]
    wrong = np.array([day is None for day in found])
    if wrong.any():
        value = frame.loc[wrong, "date"].iloc[0]
        raise UserError(
            f"{wrong.sum():,} of {len(frame):,} rows have no date that can be read, as {value!r}",
            where=shown(frame.loc[wrong, "place"]),
            fix="write dates as 2009-03-07, or choose another data.split",
        )
    return np.array([day.toordinal() for day in found if day is not None], dtype=np.int64)
