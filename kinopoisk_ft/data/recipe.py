"""Load labelled texts, clean them, and split them into train, validation and test."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from kinopoisk_ft.data.cleaning import clean_text, clean_texts
from kinopoisk_ft.data.duplicates import drop_near_duplicates, group_near_duplicates
from kinopoisk_ft.data.formats import QUOTING
from kinopoisk_ft.data.label_budget import limit_rows
from kinopoisk_ft.data.leakage import Leakage, measure_leakage
from kinopoisk_ft.data.preprocessing import TRUNCATIONS, Preprocessing
from kinopoisk_ft.data.splits import (
    GROUPED,
    PREDEFINED,
    SPLITS,
    Shares,
    digest_rows,
    group_rows,
    split_rows,
)
from kinopoisk_ft.errors import UserError, check_name, check_positive

log = logging.getLogger(__name__)

GRADES = ("Bad", "Neutral", "Good")
# Optional columns that are kept with each text.
METADATA = ("film", "author", "date", "title", "grade10")
# Valid values of the options that are strings.
_NAMES: dict[str, Iterable[str]] = {
    "empty": ("drop", "refuse"),
    "near_duplicates": ("drop", "keep"),
    "split": SPLITS,
    "truncation": TRUNCATIONS,
    "quoting": QUOTING,
}


def check_options(recipe: Any) -> None:
    """Raise UserError if an option is invalid or contradicts another option."""
    for name, valid in _NAMES.items():
        # Only the recipes that read tables have the option `quoting`.
        if (value := getattr(recipe, name, None)) is not None:
            check_name(value, valid, f"data.{name}")
    for name in ("limit", "max_length", "max_characters", "window_stride", "max_windows"):
        check_positive(getattr(recipe, name), f"data.{name}")
    limit = recipe.train_limit
    # For infinity, the remainder is NaN.
    if limit is not None and not (0 < limit < 1 or (limit >= 1 and limit % 1 == 0)):
        raise option_error("train_limit", limit, "set a whole number, or a fraction such as 0.1")
    for name in ("test_size", "val_size"):
        share = getattr(recipe, name)
        if not 0 < share < 1:
            raise option_error(name, share, "set it to a fraction between 0 and 1, for example 0.2")
    _check_folds(recipe.split, recipe.folds, recipe.fold)
    if (recipe.split == PREDEFINED) != (recipe.split_column is not None):
        fix = "set both data.split=predefined and data.split_column=<column>, or neither"
        why = f" with data.split={recipe.split}"
        raise option_error("split_column", recipe.split_column, fix, why)


def _check_folds(split: str, folds: int | None, fold: int | None) -> None:
    if folds is None and fold is not None:
        fix = "also set data.folds, for example data.folds=5"
        raise option_error("fold", fold, fix, " without data.folds")
    if folds is None:
        return
    if folds < 2:
        raise option_error("folds", folds, "set data.folds to 2 or more, or to null for no folds")
    if split == PREDEFINED:
        fix = "set data.folds=null, because data.split_column already defines the splits"
        raise option_error("folds", folds, fix, f" with data.split={split}")
    if fold is None or not 0 <= fold < folds:
        fix = f"set data.fold to the test fold, from 0 to {folds - 1}; to run all folds, use "
        fix += f"-m data.fold={','.join(map(str, range(min(folds, 5))))}" + ",…" * (folds > 5)
        raise option_error("fold", fold, fix, f" with data.folds={folds}")


def option_error(name: str, value: object, fix: str, why: str = "") -> UserError:
    """Create the error for an invalid value of the option data.<name>."""
    return UserError(f"data.{name} cannot be {value!r}{why}", where=f"data.{name}", fix=fix)


@dataclass(frozen=True)
class DataSplit:
    """Cleaned texts with labels, split into train, validation and test.

    Each frame has the columns text (str), label (int64) and row (int64). The column label contains
    indices into `class_names`. The column row contains row numbers in the source, from 0. Columns
    of the source whose names are in METADATA, such as film, are kept. If the texts are split by
    film or author, the column group (int) contains group numbers, and all rows of a group are in
    the same frame.

    Args:
        counts: numbers of rows by name, such as rows_read, dropped_empty and train.
        source_digest: SHA-256 (hex) of the texts and labels before cleaning.
        split_digest: SHA-256 (hex) of the row numbers in train, val and test, before
            `train_limit` is applied.
        preprocessing: preprocessing options. The texts are cleaned, but not yet truncated.
    """

    train: pd.DataFrame
    val: pd.DataFrame
    test: pd.DataFrame
    class_names: tuple[str, ...]
    counts: dict[str, int]
    source_digest: str
    split_digest: str
    preprocessing: Preprocessing
    leakage: Leakage

    @property
    def parts(self) -> dict[str, pd.DataFrame]:
        """Return the frames by name: train, val and test."""
        return {"train": self.train, "val": self.val, "test": self.test}


@dataclass(kw_only=True)
class DataRecipe(ABC):
    """Base class for data sets; each file in conf/data instantiates a subclass.

    To add a source of texts, implement `read` in a subclass.

    Args:
        limit: maximum number of rows to keep after cleaning; if None, all rows are kept.
        classes: 2 (Bad, Good) or 3 (Bad, Neutral, Good). With 2, Neutral rows are dropped.
        max_length, truncation, max_characters, strip_scores: see `Preprocessing`.
        window_stride, max_windows, text_prefix: see `Preprocessing`.
        empty: if "drop", rows without a text are dropped; if "refuse", they raise an error.
        near_duplicates: if "drop", near-duplicates are dropped (see `drop_near_duplicates`); if
            "keep", all rows are kept.
        split: how to split the rows, one of SPLITS.
        split_column: column that assigns each row to train, val or test. It is required if `split`
            is "predefined", and must be None otherwise.
        test_size, val_size, split_seed, folds, fold: see `Shares`.
        train_limit: number or fraction of the train rows to keep; None keeps all. Validation and
            test rows do not change.
        train_seed: random seed for choosing the rows that `train_limit` keeps.
    """

    limit: int | None
    classes: int | None
    max_length: int
    empty: str
    truncation: str = "head"
    max_characters: int | None = None
    strip_scores: bool = False
    window_stride: int | None = None
    max_windows: int | None = None
    text_prefix: str = ""
    near_duplicates: str = "keep"
    split: str = "random"
    split_column: str | None = None
    test_size: float = 0.2
    val_size: float = 0.2
    split_seed: int = 42
    folds: int | None = None
    fold: int | None = None
    train_limit: float | None = None
    train_seed: int = 0

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing options."""
        return Preprocessing(**{f.name: getattr(self, f.name) for f in fields(Preprocessing)})

    @abstractmethod
    def read(self) -> pd.DataFrame:
        """Return the raw data as a frame.

        The columns are text, label (class name) and row (number from 0). Optional columns are film,
        author, date, title, grade10, part and place. The column part contains the values of
        `split_column`. The column place is used in messages, for example "reviews.csv:12".
        """

    def choose_classes(self, frame: pd.DataFrame) -> tuple[str, ...]:
        """Return the class names in the order of their ids.

        The caller drops the rows with other labels.
        """
        if self.classes not in (2, 3):
            raise option_error("classes", self.classes, "set it to 2 (without Neutral) or 3")
        return GRADES if self.classes == 3 else ("Bad", "Good")

    def load(self) -> DataSplit:
        """Read, clean and split the texts, and measure the leakage from train to test."""
        frame = self.read()
        if "place" not in frame:
            frame = frame.assign(place="row " + frame["row"].astype(str))
        digest = _digest_source(frame)
        class_names = self.choose_classes(frame)
        frame, counts = self._select(frame, class_names)
        near = group_near_duplicates(frame["text"].tolist())
        shares = Shares(self.test_size, self.val_size, self.split_seed, self.folds, self.fold)
        groups = group_rows(frame, near, self.split)
        positions = split_rows(frame, groups, class_names, self.split, shares)
        # The bootstrap draws whole groups, because reviews of the same group are not independent.
        if self.split in GROUPED:
            frame = frame.assign(group=groups)
        optional = (name for name in (*METADATA, "group") if name in frame)
        columns = ["text", "label", "row", *optional]
        train, val, test = (frame[columns].iloc[p].reset_index(drop=True) for p in positions)
        # `train_limit` does not change the digest, so reports can compare different limits.
        rows = digest_rows(*(part["row"].to_numpy() for part in (train, val, test)))
        near_train = near[positions[0]]
        if self.train_limit is not None:
            kept = limit_rows(
                train["label"].to_numpy(),
                train["group"].to_numpy() if "group" in train else None,
                self.train_limit,
                self.train_seed,
            )
            counts["beyond_train_limit"] = len(train) - len(kept)
            train, near_train = train.iloc[kept].reset_index(drop=True), near_train[kept]
        counts |= {"train": len(train), "val": len(val), "test": len(test)}
        shown = {name: n for name, n in counts.items() if n}
        log.info("data: %s", ", ".join(f"{name} {n:,}" for name, n in shown.items()))
        leakage = measure_leakage(train, test, near_train, near[positions[2]])
        leakage.log_summary()
        return DataSplit(
            train, val, test, class_names, counts, digest, rows, self.preprocessing, leakage
        )

    def _select(
        self, frame: pd.DataFrame, class_names: tuple[str, ...]
    ) -> tuple[pd.DataFrame, dict[str, int]]:
        counts = {"rows_read": len(frame)}
        raw = frame["text"]
        frame, counts["dropped_empty"] = clean_texts(frame, self.empty, self.preprocessing.clean)
        if self.strip_scores:
            # `raw` is cleaned as well, so that a removed newline does not count as a removed grade.
            changed = frame["text"] != raw[frame.index].map(clean_text)
            counts["grades_removed"] = int(changed.sum())
        chosen = frame["label"].isin(class_names)
        counts["dropped_neutral"] = int((~chosen).sum())
        frame = frame[chosen]
        if self.near_duplicates == "drop":
            frame, dropped = drop_near_duplicates(frame)
            counts |= dropped
        # `limit` counts usable rows, so it is applied after all other rows have been dropped.
        counts["beyond_limit"] = max(0, len(frame) - (self.limit or len(frame)))
        frame = frame.head(self.limit) if self.limit else frame
        number = {name: label for label, name in enumerate(class_names)}
        frame = frame.assign(
            label=frame["label"].map(number).astype(np.int64), row=frame["row"].astype(np.int64)
        )
        return frame, counts


def _digest_source(frame: pd.DataFrame) -> str:
    # The file itself is not hashed, so that a compressed copy has the same digest.
    digest = hashlib.sha256()
    for text, label in zip(frame["text"], frame["label"], strict=True):
        # The unit and record separators of ASCII mark the ends of labels and texts. `clean_texts`
        # reports unpaired surrogates later, with their rows.
        digest.update(f"{label}\x1f{text}\x1e".encode(errors="surrogatepass"))
    return digest.hexdigest()
