"""How much of the test set training has met: films, authors, near-duplicates."""

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

from kinopoisk_ft.data.duplicates import ends
from kinopoisk_ft.text import fold_name

log = logging.getLogger(__name__)

BY_FAR = 0.05  # accuracy by which guessing a film's label beats the majority class, to be told
CHANCE = 0.01  # probability by chance below which it is believed


@dataclass(frozen=True)
class Overlap:
    """How many of the test set's films (authors, texts with near-duplicates) train has too."""

    shared: int
    total: int

    @property
    def share(self) -> float:
        """Return shared / total, 0 where there is none."""
        return self.shared / self.total if self.total else 0.0

    def metrics(self, name: str) -> dict[str, float]:
        """Return number and share by the name that a store has for them."""
        return {f"leakage_{name}": self.shared, f"leakage_{name}_share": self.share}


@dataclass(frozen=True)
class Leakage:
    """What a model could know of the test set without reading it.

    Args:
        overlaps: by "films", "authors" (names) and "near_duplicates" (test rows); without those
            that the data do not name.
        film_guess: accuracy on test of each film's majority label in train, for new films train's
            majority class; None without films.
        majority: accuracy on test of train's majority class.
        p_value: of the difference of these two by McNemar's exact test, one-sided.
    """

    overlaps: dict[str, Overlap]
    film_guess: float | None
    majority: float
    p_value: float

    @property
    def film_tells(self) -> bool:
        """Return whether the film alone says more of the label than chance and BY_FAR allow."""
        gain = (self.film_guess or 0.0) - self.majority
        return gain > BY_FAR and self.p_value < CHANCE

    def metrics(self) -> dict[str, float]:
        """Return numbers and shares by name, all starting with `leakage_`."""
        found: dict[str, float] = {"leakage_majority_accuracy": self.majority}
        for name, overlap in self.overlaps.items():
            found |= overlap.metrics(name)
        if self.film_guess is not None:
            found["leakage_film_guess_accuracy"] = self.film_guess
        return found

    def tell(self) -> None:
        """Log all of it, and warn where a comparison would be flattered."""
        for name, overlap in self.overlaps.items():
            found = (overlap.shared, overlap.total, 100 * overlap.share)
            log.info("test %s also in train: %d of %d (%.1f%%)", name.replace("_", " "), *found)
        if self.film_guess is not None:
            text = "guessing each film's usual label: accuracy %.3f; the majority class: %.3f"
            log.info(text, self.film_guess, self.majority)
        if self.film_tells:
            log.warning(
                "the film alone tells the label (%.3f against %.3f): on films that are new, models "
                "may do worse; data.split=film measures that", self.film_guess, self.majority,
            )  # fmt: skip
        if (twins := self.overlaps["near_duplicates"]).shared:
            log.warning(
                "%d test reviews have a near-duplicate in train: data.near_duplicates=drop removes "
                "them", twins.shared,
            )  # fmt: skip


def measure_leakage(
    train: pd.DataFrame, test: pd.DataFrame, near_train: np.ndarray, near_test: np.ndarray
) -> Leakage:
    """Compare test with train: columns label and, where known, film and author.

    Args:
        near_train: group numbers (N,) of near-duplicates, the same numbering as in `near_test`.
    """
    overlaps = {"near_duplicates": Overlap(int(np.isin(near_test, near_train).sum()), len(test))}
    for name, column in (("films", "film"), ("authors", "author")):
        if column in test:
            known, met = ({fold_name(n) for n in part[column]} - {None} for part in (test, train))
            overlaps[name] = Overlap(len(known & met), len(known))
    labels = test["label"].to_numpy()
    usual = int(np.bincount(train["label"]).argmax())
    majority = float((labels == usual).mean())
    if "film" not in test:
        return Leakage(overlaps, None, majority, 1.0)
    right = _guess_by_film(train, test, usual) == labels
    better = int((right & (labels != usual)).sum())
    worse = int((~right & (labels == usual)).sum())
    odds = binomtest(better, better + worse, alternative="greater") if better + worse else None
    p_value = float(odds.pvalue) if odds else 1.0
    return Leakage(overlaps, float(right.mean()), majority, p_value)


def _guess_by_film(train: pd.DataFrame, test: pd.DataFrame, usual: int) -> np.ndarray:
    """Return for each test row its film's most frequent label in train, of equals `usual`."""
    counts = pd.crosstab(train["film"].map(fold_name), train["label"])
    if counts.empty:  # no film has a name
        return np.full(len(test), usual)
    usual_first = counts[sorted(counts.columns, key=lambda label: label != usual)]
    guesses = usual_first.idxmax(axis=1)
    return test["film"].map(fold_name).map(guesses).fillna(usual).to_numpy(dtype=np.int64)


FILE = "pretraining_texts.safetensors"  # in the folder of a base
DIGESTS = "digests"


@dataclass(frozen=True)
class TextsRead:
    """Texts that a model was pretrained on, by the digests of their ends.

    Args:
        digests: sorted (N,) int64, of the first and the last letters of each text.
        complete: whether that is all it has read.
    """

    digests: np.ndarray
    complete: bool

    @classmethod
    def of(cls, base: str | None) -> TextsRead:
        """Return what a base has read: nothing after a random start (None), unknown of a hub's."""
        nothing = np.array([], dtype=np.int64)
        file = Path(base or "", FILE)
        if base is None or not file.is_file():
            return cls(nothing, complete=base is None)
        try:
            with safe_open(file, "numpy") as kept:
                complete = (kept.metadata() or {}).get("complete") == "True"
                return cls(kept.get_tensor(DIGESTS), complete)
        except (OSError, SafetensorError) as error:
            log.warning("what %s was pretrained on cannot be read: %s", base, error)
            return cls(nothing, complete=False)

    def and_of(self, texts: Iterable[str]) -> TextsRead:
        """Return these and further texts."""
        return TextsRead(np.union1d(self.digests, _digests(texts).ravel()), self.complete)

    def write(self, folder: Path) -> None:
        """Leave the record in the folder of a base."""
        save_file({DIGESTS: self.digests}, folder / FILE, {"complete": str(self.complete)})

    def overlap(self, texts: list[str]) -> Overlap | None:
        """Return how many of the texts, or near-duplicates of them, it has read.

        None where that is unknown: none of what is recorded, and there was more.
        """
        met = 0
        if len(self.digests):
            met = int(np.isin(_digests(texts), self.digests).any(axis=1).sum())
        return Overlap(met, len(texts)) if met or self.complete else None


def _digests(texts: Iterable[str]) -> np.ndarray:
    """Return digests (N, 2) of the ends of texts; a text without letters is like no other."""
    found = [
        [_digest(f"{side}{end or text}") for side, end in zip("<>", ends(text), strict=True)]
        for text in texts
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)
