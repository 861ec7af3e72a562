"""From a source of labelled texts to the three parts of a split."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kinopoisk_ft.data.cleaning import clean_texts
from kinopoisk_ft.data.splits import digest_rows, random_split
from kinopoisk_ft.errors import UserError, nearest

log = logging.getLogger(__name__)

GRADES = ("Bad", "Neutral", "Good")
METADATA = ("film", "author", "date", "title", "grade10")  # kept beside a text where known


@dataclass(frozen=True)
class DataSplit:
    """Cleaned texts with labels, in three parts.

    Each part has the columns text (str), label (int64, index into `class_names`), row (int64,
    0-based row of the source) and, where known, film, author, date, title and grade10.
    """

    train: pd.DataFrame
    val: pd.DataFrame
    test: pd.DataFrame
    class_names: tuple[str, ...]
    counts: dict[str, int]  # rows read, dropped by each step, and in each part
    source_digest: str  # SHA-256, hex, of the texts and labels as they were read
    split_digest: str  # SHA-256, hex, of the row ids of each part


@dataclass(kw_only=True)
class DataRecipe(ABC):
    """Where texts come from and how they are cleaned and split.

    Args:
        limit: keep the first rows after cleaning, before the split; None keeps all.
        classes: 2 leaves Neutral out (0 Bad, 1 Good), 3 keeps it (0 Bad, 1 Neutral, 2 Good).
        max_length: tokens of a text that the model reads.
        empty: "drop" or "refuse" rows without a text.
        test_size: share of all rows that tests.
        val_size: share of the rest that validates.
        split_seed: of the random split.
    """

    limit: int | None
    classes: int | None
    max_length: int
    empty: str
    test_size: float = 0.2
    val_size: float = 0.2
    split_seed: int = 42

    def __post_init__(self) -> None:
        if self.empty not in ("drop", "refuse"):
            raise _invalid("empty", self.empty, nearest(str(self.empty), ("drop", "refuse")))
        for name in ("limit", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise _invalid(name, value, "give a positive number")
        for name in ("test_size", "val_size"):
            if not 0 < getattr(self, name) < 1:
                raise _invalid(name, getattr(self, name), "give a share between 0 and 1, as 0.2")

    @abstractmethod
    def read(self) -> pd.DataFrame:
        """Return the source as it is: columns text, label (name of a class), row (0-based).

        Also, where known: film, author, date, title, grade10, and place, which a message about
        the row can name ("reviews.csv:12").
        """

    def choose_classes(self, frame: pd.DataFrame) -> tuple[str, ...]:
        """Return the names of the classes to learn, in label order; rows of others are dropped."""
        if self.classes not in (2, 3):
            raise _invalid("classes", self.classes, "give 2 (Neutral left out) or 3")
        return GRADES if self.classes == 3 else ("Bad", "Good")

    def load(self) -> DataSplit:
        """Read, clean, choose classes, limit and split. Raises UserError on unusable data."""
        frame = self.read()
        if "place" not in frame:
            frame = frame.assign(place="row " + frame["row"].astype(str))
        digest = _digest_source(frame)
        class_names = self.choose_classes(frame)
        frame, counts = self._select(frame, class_names)
        labels = frame["label"].to_numpy()
        positions = random_split(
            labels,
            class_names=class_names,
            test_size=self.test_size,
            val_size=self.val_size,
            seed=self.split_seed,
        )
        train, val, test = (frame.iloc[where].reset_index(drop=True) for where in positions)
        counts |= {"train": len(train), "val": len(val), "test": len(test)}
        log.info("data: %s", ", ".join(f"{name} {n:,}" for name, n in counts.items()))
        rows = digest_rows(*(part["row"].to_numpy() for part in (train, val, test)))
        return DataSplit(train, val, test, class_names, counts, digest, rows)

    def _select(
        self, frame: pd.DataFrame, class_names: tuple[str, ...]
    ) -> tuple[pd.DataFrame, dict[str, int]]:
        """Return the rows to split, with numbers for labels, and how many each step dropped."""
        counts = {"rows_read": len(frame)}
        frame, counts["dropped_empty"] = clean_texts(frame, self.empty)
        known = frame["label"].isin(class_names)
        counts["dropped_neutral"] = int((~known).sum())
        frame = frame[known]
        counts["beyond_limit"] = max(0, len(frame) - (self.limit or len(frame)))
        frame = frame.head(self.limit) if self.limit else frame
        number = {name: label for label, name in enumerate(class_names)}
        frame = frame.assign(
            label=frame["label"].map(number).astype(np.int64), row=frame["row"].astype(np.int64)
        )
        columns = ["text", "label", "row", *(name for name in METADATA if name in frame)]
        return frame[columns], counts


def _digest_source(frame: pd.DataFrame) -> str:
    """Hash texts and labels, so that a compressed copy of the same data has the same digest."""
    digest = hashlib.sha256()
    for text, label in zip(frame["text"], frame["label"], strict=True):
        digest.update(f"{label}\x1f{text}\x1e".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _invalid(name: str, value: object, fix: str) -> UserError:
    return UserError(f"{name} cannot be {value!r}", where=f"data.{name}", fix=fix)
