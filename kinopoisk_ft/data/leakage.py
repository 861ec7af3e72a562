"""Measure leakage: how much of the test set also occurs in the data a model was trained on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.stats import binomtest

from kinopoisk_ft.data.duplicates import compute_match_keys
from kinopoisk_ft.text import fold_name

log = logging.getLogger(__name__)

# A warning is logged if predicting each film's majority label is more accurate than predicting the
# majority class, by more than MIN_GAIN and with a p-value below MAX_P_VALUE.
MIN_GAIN = 0.05
MAX_P_VALUE = 0.01
# File in the folder of a model that this project pretrained, and the name of its tensor.
FILE, DIGESTS = "pretraining_texts.safetensors", "digests"


@dataclass(frozen=True)
class Overlap:
    """Store how many films (or authors, or texts) in the test set also occur in training data.

    Args:
        shared: number that occur in both the test set and the training data.
        total: number in the test set.
    """

    shared: int
    total: int

    @property
    def share(self) -> float:
        return self.shared / self.total if self.total else 0.0

    def metrics(self, name: str) -> dict[str, float]:
        """Return the shared number and its fraction of the total, by MLflow metric name."""
        return {f"leakage_{name}": self.shared, f"leakage_{name}_share": self.share}


@dataclass(frozen=True)
class Leakage:
    """Store how much test overlaps with train, and how well the film alone predicts the label.

    Args:
        overlaps: overlap by kind: "films" and "authors" (counted by name, present only if the data
            have these columns) and "near_duplicates" (counted in test rows).
        film_guess: test accuracy if the prediction for a review is the most frequent label of its
            film in train. For films that are not in train, the prediction is the majority class.
            None if the data have no films.
        majority: test accuracy if the prediction is always the majority class of train.
        p_value: p-value of `film_guess` > `majority` (one-sided exact McNemar test).
    """

    overlaps: dict[str, Overlap]
    film_guess: float | None
    majority: float
    p_value: float

    @property
    def film_predicts_label(self) -> bool:
        """Return whether the film predicts the label clearly better than the majority class."""
        gain = (self.film_guess or 0.0) - self.majority
        return gain > MIN_GAIN and self.p_value < MAX_P_VALUE

    def metrics(self) -> dict[str, float]:
        """Return all values by MLflow metric name; each name starts with `leakage_`."""
        values: dict[str, float] = {"leakage_majority_accuracy": self.majority}
        for name, overlap in self.overlaps.items():
            values |= overlap.metrics(name)
        if self.film_guess is not None:
            values["leakage_film_guess_accuracy"] = self.film_guess
        return values

    def log_summary(self) -> None:
        """Log all values, and warn about leakage that makes test results look too good."""
        for name, overlap in self.overlaps.items():
            numbers = (overlap.shared, overlap.total, 100 * overlap.share)
            log.info("test %s also in train: %d of %d (%.1f%%)", name.replace("_", " "), *numbers)
        if self.film_guess is not None:
            log.info(
                "test accuracy of predicting each film's majority label: %.3f; of predicting the "
                "majority class: %.3f", self.film_guess, self.majority,
            )  # fmt: skip
        if self.film_predicts_label:
            log.warning(
                "the film alone predicts the label (accuracy %.3f, majority class %.3f), so models "
                "may do worse on new films; use data.split=film to measure this",
                self.film_guess, self.majority,
            )  # fmt: skip
        if (duplicates := self.overlaps["near_duplicates"]).shared:
            log.warning(
                "%d test reviews have a near-duplicate in train; set data.near_duplicates=drop to "
                "remove them", duplicates.shared,
            )  # fmt: skip


def measure_leakage(
    train: pd.DataFrame, test: pd.DataFrame, near_train: np.ndarray, near_test: np.ndarray
) -> Leakage:
    """Compare the test set with the train set.

    Args:
        train, test: frames with the column label, and film and author if the data have them.
        near_train, near_test: near-duplicate group number of each row (N,). A group with rows in
            both frames has the same number in both.
    """
    overlaps = {"near_duplicates": Overlap(int(np.isin(near_test, near_train).sum()), len(test))}
    for name, column in (("films", "film"), ("authors", "author")):
        if column in test:
            tested, trained = (
                {fold_name(value) for value in part[column]} - {None} for part in (test, train)
            )
            overlaps[name] = Overlap(len(tested & trained), len(tested))
    labels = test["label"].to_numpy()
    usual = int(np.bincount(train["label"]).argmax())
    majority = float((labels == usual).mean())
    if "film" not in test:
        return Leakage(overlaps, None, majority, 1.0)
    # McNemar's test compares the rows for which exactly one of the two predictions is right.
    right = _guess_labels_by_film(train, test, usual) == labels
    better = int((right & (labels != usual)).sum())
    worse = int((~right & (labels == usual)).sum())
    odds = binomtest(better, better + worse, alternative="greater") if better + worse else None
    p_value = float(odds.pvalue) if odds else 1.0
    return Leakage(overlaps, float(right.mean()), majority, p_value)


def _guess_labels_by_film(train: pd.DataFrame, test: pd.DataFrame, usual: int) -> np.ndarray:
    """Predict the label of each test row as the most frequent label of its film in train.

    The label `usual` is predicted in case of a tie, and for films that are not in train.
    """
    counts = pd.crosstab(train["film"].map(fold_name), train["label"])
    # The table is empty if no train row has a film.
    if counts.empty:
        return np.full(len(test), usual)
    usual_first = counts[sorted(counts.columns, key=lambda label: label != usual)]
    guesses = usual_first.idxmax(axis=1)
    return test["film"].map(fold_name).map(guesses).fillna(usual).to_numpy(dtype=np.int64)


@dataclass(frozen=True)
class PretrainingTexts:
    """Record which texts a model was pretrained on, as hashes of their near-duplicate keys.

    Args:
        digests: sorted int64 hashes (N,) of the keys that `compute_match_keys` returns for these
            texts.
        complete: whether the record contains all texts that the model was pretrained on.
    """

    digests: np.ndarray
    complete: bool

    @classmethod
    def of(cls, base: str | None) -> PretrainingTexts:
        """Load the record of a pretrained model.

        If `base` is None (random weights), the record is empty and complete. If this project did
        not pretrain the model, the record is empty and incomplete.
        """
        nothing = np.array([], dtype=np.int64)
        file = Path(base or "", FILE)
        if base is None or not file.is_file():
            return cls(nothing, complete=base is None)
        try:
            with safe_open(file, "numpy") as record:
                complete = (record.metadata() or {}).get("complete") == "True"
                return cls(record.get_tensor(DIGESTS), complete)
        except (OSError, SafetensorError) as error:
            log.warning("the record of the texts on which %s was pretrained cannot be read: %s",
                        base, error)  # fmt: skip
            return cls(nothing, complete=False)

    def add(self, texts: Iterable[str]) -> PretrainingTexts:
        """Return a record that also contains `texts`."""
        return PretrainingTexts(
            np.union1d(self.digests, _digest_texts(texts).ravel()), self.complete
        )

    def write(self, folder: Path) -> None:
        """Write the record to the folder of a pretrained model."""
        save_file({DIGESTS: self.digests}, folder / FILE, {"complete": str(self.complete)})

    def overlap(self, texts: list[str]) -> Overlap | None:
        """Count how many of `texts` the model was pretrained on; near-duplicates also count.

        Returns:
            The overlap, or None if it is unknown. It is unknown if the record is incomplete and
            contains none of the texts.
        """
        shared = 0
        if len(self.digests):
            shared = int(np.isin(_digest_texts(texts), self.digests).any(axis=1).sum())
        return Overlap(shared, len(texts)) if shared or self.complete else None


def _digest_texts(texts: Iterable[str]) -> np.ndarray:
    """Hash the two near-duplicate keys of each text, (N, 2), or the text itself if it is blank."""
    digests = [
        [
            _digest(f"{side}{end or text}")
            for side, end in zip("<>", compute_match_keys(text), strict=True)
        ]
        for text in texts
    ]
    return np.array(digests, dtype=np.int64).reshape(-1, 2)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
