"""Measure leakage, which is the overlap between the test set and the training data."""

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

# A warning is logged if the accuracy of predicting each film's majority label exceeds the accuracy
# of predicting the majority class by more than MIN_GAIN, with a p-value below MAX_P_VALUE.
MIN_GAIN = 0.05
MAX_P_VALUE = 0.01
# File in the folder of a model that this project pretrained, and the name of its tensor.
FILE, DIGESTS = "pretraining_texts.safetensors", "digests"


@dataclass(frozen=True)
class Overlap:
    """The overlap between the test set and training data, counted in films, authors or texts.

    Args:
        shared: number in both the test set and the training data.
        total: number in the test set.
    """

    shared: int
    total: int

    @property
    def share(self) -> float:
        return self.shared / self.total if self.total else 0.0

    def metrics(self, name: str) -> dict[str, float]:
        """Return {metric name: value} for `shared` and for `shared` / `total`.

        `name` is the part of the metric names that says what is counted, for example "films".
        """
        return {f"leakage_{name}": self.shared, f"leakage_{name}_share": self.share}


@dataclass(frozen=True)
class Leakage:
    """Measures of the leakage from train to test.

    Args:
        overlaps: {kind: overlap}. "near_duplicates" counts test reviews with a near-duplicate in
            train. "films" and "authors" count the films and authors in test that are also in train.
            If the data have no films or no authors, this kind is missing.
        film_guess: test accuracy if each review gets the most frequent label of its film in train.
            A review of a film that is not in train gets the majority class. None if the data have
            no films.
        majority: test accuracy if each review gets the majority class of train.
        p_value: p-value of a one-sided exact McNemar test with the alternative hypothesis
            `film_guess` > `majority`.
    """

    overlaps: dict[str, Overlap]
    film_guess: float | None
    majority: float
    p_value: float

    @property
    def film_predicts_label(self) -> bool:
        """Return whether `film_guess` is significantly higher than `majority`."""
        gain = (self.film_guess or 0.0) - self.majority
        return gain > MIN_GAIN and self.p_value < MAX_P_VALUE

    def metrics(self) -> dict[str, float]:
        """Return {metric name: value}; each name starts with `leakage_`."""
        values: dict[str, float] = {"leakage_majority_accuracy": self.majority}
        for name, overlap in self.overlaps.items():
            values |= overlap.metrics(name)
        if self.film_guess is not None:
            values["leakage_film_guess_accuracy"] = self.film_guess
        return values

    def log_summary(self) -> None:
        """Log the measures, and warn about leakage."""
        parts = (
            f"{name.replace('_', ' ')} {overlap.shared} of {overlap.total}"
            for name, overlap in self.overlaps.items()
        )
        log.info("test reviews, films or authors that are also in train: %s", ", ".join(parts))
        if self.film_guess is not None:
            log.debug(
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
    """Measure the leakage from train to test.

    Args:
        train, test: frames with the column label; the columns film and author are optional.
        near_train, near_test: near-duplicate group number of each row, (N,). The same number means
            the same group in both frames.
    """
    overlaps = {"near_duplicates": Overlap(int(np.isin(near_test, near_train).sum()), len(test))}
    for name, column in (("films", "film"), ("authors", "author")):
        if column in test:
            # `fold_name` returns None for a missing or blank name, which does not count.
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
    # If both predictions are equally good, each is right in half of these rows on average.
    # `binomtest` does not accept 0 trials.
    odds = binomtest(better, better + worse, alternative="greater") if better + worse else None
    p_value = float(odds.pvalue) if odds else 1.0
    return Leakage(overlaps, float(right.mean()), majority, p_value)


def _guess_labels_by_film(train: pd.DataFrame, test: pd.DataFrame, usual: int) -> np.ndarray:
    # (films, classes) counts. Rows without a film are not counted.
    counts = pd.crosstab(train["film"].map(fold_name), train["label"])
    # The table is empty if no train row has a film.
    if counts.empty:
        return np.full(len(test), usual)
    # If labels are equally frequent, idxmax returns the first column.
    usual_first = counts[sorted(counts.columns, key=lambda label: label != usual)]
    guesses = usual_first.idxmax(axis=1)
    return test["film"].map(fold_name).map(guesses).fillna(usual).to_numpy(dtype=np.int64)


@dataclass(frozen=True)
class PretrainingTexts:
    """A record of the texts on which a model was pretrained.

    Args:
        digests: sorted int64 hashes (N,) of the keys that `compute_match_keys` returns.
        complete: whether the record contains all pretraining texts of the model.
    """

    digests: np.ndarray
    complete: bool

    @classmethod
    def of(cls, base: str | None) -> PretrainingTexts:
        """Load the record of a model.

        Args:
            base: folder or Hub id of the model; None for random weights.

        Returns:
            The record. It is empty and complete for random weights, and empty and incomplete if
            the model has no readable record.
        """
        nothing = np.array([], dtype=np.int64)
        # If `base` is a Hub id, no such file exists, and the pretraining texts are unknown.
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
        """Return a copy of this record, with `texts` added."""
        digests = np.union1d(self.digests, _digest_texts(texts).ravel())
        return PretrainingTexts(digests, self.complete)

    def write(self, folder: Path) -> None:
        """Write this record to a model folder."""
        # Metadata of safetensors may contain only strings.
        save_file({DIGESTS: self.digests}, folder / FILE, {"complete": str(self.complete)})

    def overlap(self, texts: list[str]) -> Overlap | None:
        """Count how many of `texts` the model saw in pretraining, including near-duplicates.

        The result is None if the record is incomplete and contains none of the texts.
        """
        shared = 0
        if len(self.digests):
            shared = int(np.isin(_digest_texts(texts), self.digests).any(axis=1).sum())
        return Overlap(shared, len(texts)) if shared or self.complete else None


def _digest_texts(texts: Iterable[str]) -> np.ndarray:
    """Return hashes (N, 2) of the two keys of each of N texts; see `compute_match_keys`."""
    digests = []
    for text in texts:
        head, tail = compute_match_keys(text)
        # A blank text has no keys, so the text itself is hashed.
        # With the prefixes, the start of a text never matches the end of another text.
        digests.append([_digest(f"<{head or text}"), _digest(f">{tail or text}")])
    return np.array(digests, dtype=np.int64).reshape(-1, 2)


def _digest(text: str) -> int:
    # Python's `hash` returns other values in each process. 8 bytes of SHA-256 fit into int64.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
