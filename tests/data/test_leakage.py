"""Compare measured leakage with counts by hand and with other libraries."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score

from kinopoisk_ft.data.kinopoisk import Kinopoisk
from kinopoisk_ft.data.leakage import Leakage, Overlap, measure_leakage
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.tasks.record import record_data

ROWS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("абвг")), min_size=1, max_size=40)


def frame(rows: list[tuple[int, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["label", "film"])


def measure(train: pd.DataFrame, test: pd.DataFrame) -> Leakage:
    near = np.arange(len(train) + len(test))
    return measure_leakage(train, test, near[: len(train)], near[len(train) :])


@given(ROWS, ROWS)
def test_guesses_equal_a_classifier_for_each_film(
    seen: list[tuple[int, str]], new: list[tuple[int, str]]
) -> None:
    train, test = frame(seen), frame(new)
    found = measure(train, test)
    overall = DummyClassifier(strategy="most_frequent").fit(train, train["label"])
    usual = overall.predict(test)
    guesses = []
    for film, fallback in zip(test["film"], usual, strict=True):
        counts = train.loc[train["film"] == film, "label"].value_counts()
        best = sorted(counts[counts == counts.max()].index) if len(counts) else [fallback]
        guesses.append(fallback if fallback in best else best[0])
    assert found.majority == pytest.approx(accuracy_score(test["label"], usual))
    assert found.film_guess == pytest.approx(accuracy_score(test["label"], guesses))
    labels = test["label"].to_numpy()
    better = ((guesses == labels) & (usual != labels)).sum()
    worse = ((guesses != labels) & (usual == labels)).sum()
    assert found.p_value == pytest.approx(binom.sf(better - 1, better + worse, 0.5))
    films = set(test["film"])
    assert found.overlaps["films"] == Overlap(len(films & set(train["film"])), len(films))


def test_overlaps_by_hand() -> None:
    train = pd.DataFrame(
        {"label": [0, 1, 1], "film": ["Ёлки", "Брат", None], "author": ["а", "", "б"]}
    )
    test = pd.DataFrame(
        {
            "label": [0, 1, 1, 0],
            "film": ["елки (2010)", "Оно", "Оно", ""],
            "author": ["", "Б", "в", "г"],
        }
    )
    found = measure_leakage(train, test, np.array([0, 1, 2]), np.array([3, 1, 1, 4]))
    assert found.overlaps == {
        "near_duplicates": Overlap(2, 4), "films": Overlap(1, 2), "authors": Overlap(1, 3),
    }  # fmt: skip
    assert found.metrics() == {
        "leakage_majority_accuracy": 0.5, "leakage_film_guess_accuracy": 0.75,
        "leakage_near_duplicates": 2, "leakage_near_duplicates_share": 0.5, "leakage_films": 1,
        "leakage_films_share": 0.5, "leakage_authors": 1, "leakage_authors_share": 1 / 3,
    }  # fmt: skip


def test_without_films_nothing_is_guessed() -> None:
    bare = pd.DataFrame({"label": [0, 1, 1]})
    found = measure(bare, bare)
    assert (found.film_guess, found.film_predicts_label, found.majority) == (None, False, 2 / 3)
    nameless = bare.assign(film=["", None, " "])
    found = measure(nameless, nameless)
    assert (found.film_guess, found.overlaps["films"]) == (found.majority, Overlap(0, 0))


@pytest.mark.parametrize(
    ("rows", "films", "seen", "warns"),
    [(400, 3, True, True), (400, 3, False, False), (12, 3, True, False), (2000, 50, True, False)],
    ids=["films tell", "new films", "too few rows to believe it", "a gain of 2%"],
)
def test_warning_when_the_film_predicts_the_label(
    rows: int, films: int, seen: bool, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The reviews of one film have another label than the reviews of all other films."""
    train = frame([(int(row % films > 0), f"фильм {row % films}") for row in range(rows)])
    test = train if seen else train.assign(film="новый")
    with caplog.at_level(logging.DEBUG):
        measure(train, test).log_summary()
    warned = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert ["the film alone predicts" in r.getMessage() for r in warned] == [True] * warns
    assert "accuracy of predicting each film's majority label" in caplog.text


def kinopoisk(folder: Path, **options: Any) -> DataSplit:
    path = folder / "kinopoisk.jsonl"
    twin = " ".join(f"слово{n}" for n in range(50))
    rows = [
        {"content": f"отзыв {row}" if row % 10 else f"{twin} {row}", "author": f"а {row % 9}",
         "grade3": "Good" if row % 3 or row % 10 == 0 else "Bad", "movie_name": f"Ф {row % 3}"}
        for row in range(200)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    base: dict[str, Any] = {"limit": None, "classes": 2, "max_length": 8, "empty": "drop"}
    return Kinopoisk(path=str(path), **base, **options).load()


class Kept:
    """A recorder of the metrics that a run logs."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.found: dict[str, str] = {}
        self.files: list[Path] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.values |= values

    def tags(self, values: dict[str, str]) -> None:
        self.found |= values

    def dataset(self, context: str, values: dict[str, str]) -> None:
        pass

    def artifact(self, path: Path) -> None:
        self.files.append(path)


def test_a_run_records_what_leaks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        split = kinopoisk(tmp_path)
    duplicates = sum(split.test["text"].str.startswith("слово"))
    assert f"{duplicates} test reviews have a near-duplicate in train" in caplog.text
    tracker: Any = Kept()
    record_data(split, {}, tracker, tmp_path)
    assert tracker.values["leakage_near_duplicates"] == duplicates > 0
    assert tracker.found["split_digest"] == split.split_digest
    written = json.loads((tmp_path / "data.json").read_text())
    assert written["leakage"] == tracker.values
    assert written["counts"]["rows_read"] == 200
    assert tracker.files == [tmp_path / "data.json"]


def test_dropping_near_duplicates_ends_the_leak(tmp_path: Path) -> None:
    dropped = kinopoisk(tmp_path, near_duplicates="drop")
    assert dropped.counts["dropped_near_duplicates"] == 19
    assert dropped.leakage.overlaps["near_duplicates"].shared == 0


@pytest.mark.slow
def test_films_of_real_reviews(shared: Path) -> None:
    """Train contains nearly all films of the test set in the random split, and none by film."""
    base: dict[str, Any] = {"limit": None, "classes": 2, "max_length": 8, "empty": "drop"}
    path = str(shared / "data" / "kinopoisk.jsonl.gz")
    by_chance = Kinopoisk(path=path, **base).load().leakage
    by_film = Kinopoisk(path=path, **base, split="film").load().leakage
    assert by_chance.overlaps["films"].share > 0.9
    assert by_chance.film_predicts_label
    assert by_film.overlaps["films"].shared == 0
    assert by_film.film_guess == by_film.majority
    assert by_chance.overlaps["near_duplicates"].shared == 0
