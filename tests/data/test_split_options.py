"""Check the options of a split in a recipe: columns, folds, dropped rows, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kinopoisk_ft import text
from kinopoisk_ft.data import leakage
from kinopoisk_ft.data.kinopoisk import Kinopoisk
from kinopoisk_ft.data.local import LocalFile
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.errors import UserError


def local(folder: Path, **options: Any) -> LocalFile:
    """Write 60 reviews to a file and build a recipe with these options."""
    rows = [
        {
            "text": f"отзыв {row}", "label": row % 2, "film": f"Фильм {row % 12}",
            "date": "2010-01-01", "side": ("train", "Validation", "test")[row % 3],
            "odd": "tset" if row == 7 else "train", "half": ("train", "test")[row // 2 % 2],
            "poor": "test" if row % 2 else ("train", "val")[row // 2 % 2],
        }
        for row in range(60)
    ]  # fmt: skip
    changes = options.pop("changes", {})
    for row, values in changes.items():
        rows[row] |= values
    path = folder / "reviews.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    base: dict[str, Any] = {"limit": None, "classes": None, "max_length": 8, "empty": "drop"}
    return LocalFile(
        path=str(path), text_column="text", label_column="label", **{**base, **options}
    )


def rows_of(split: DataSplit) -> list[list[int]]:
    return [part["row"].tolist() for part in (split.train, split.val, split.test)]


def test_a_column_names_the_parts(tmp_path: Path) -> None:
    split = local(tmp_path, split="predefined", split_column="side").load()
    assert rows_of(split) == [list(range(first, 60, 3)) for first in range(3)]


def test_kinopoisk_by_film_in_folds(tmp_path: Path) -> None:
    path = tmp_path / "kinopoisk.csv"
    pd.DataFrame(
        {
            "content": [f"отзыв {row}" for row in range(90)],
            "grade3": ["Good", "Bad", "Good"] * 30,
            "movie_name": [f"Фильм {row // 5} (2010)" for row in range(90)],
        }
    ).to_csv(path, index=False)
    base: dict[str, Any] = {"limit": None, "classes": 2, "max_length": 8, "empty": "drop"}
    splits = [
        Kinopoisk(path=str(path), **base, split="film", folds=3, fold=fold).load()
        for fold in range(3)
    ]
    assert sorted(row for split in splits for row in rows_of(split)[2]) == list(range(90))
    assert len({split.split_digest for split in splits}) == 3
    for split in splits:
        assert not set(split.train["film"]) & set(split.test["film"])
        assert split.leakage.overlaps["films"].shared == 0


def test_names_are_folded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folded: list[str] = []

    def count(form: str, name: str) -> str:
        folded.append(name)
        return name

    monkeypatch.setattr(text.unicodedata, "normalize", count)
    monkeypatch.setattr(leakage, "fold_name", lambda name: name)
    split = local(tmp_path, split="film").load()
    assert sorted(folded) == sorted(f"Фильм {row % 12}" for row in range(60))
    assert split.test.groupby("film")["group"].nunique().eq(1).all()


def test_cleaning_is_counted(tmp_path: Path) -> None:
    changes = {
        3: {"text": "ОТЗЫВ  1"}, 5: {"text": "отзыв 0"}, 7: {"text": "отзыв 9 8 из 10"},
        11: {"text": "10 из 10"},
    }  # fmt: skip
    recipe = local(tmp_path, changes=changes, near_duplicates="drop", strip_scores=True, limit=50)
    split = recipe.load()
    assert split.counts == {
        "rows_read": 60, "dropped_empty": 1, "grades_removed": 1, "dropped_neutral": 0,
        "dropped_conflicting_duplicates": 2, "dropped_near_duplicates": 2, "beyond_limit": 5,
        "train": 32, "val": 8, "test": 10,
    }  # fmt: skip
    kept = sorted(row for part in rows_of(split) for row in part)
    assert kept == [row for row in range(60) if row not in (0, 3, 5, 9, 11)][:50]
    texts = pd.concat([split.train, split.val, split.test]).set_index("row")["text"]
    assert texts[7] == "отзыв 9 "


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"split": "flim"}, "split cannot be 'flim'", "did you mean 'film'?"),
    ({"near_duplicates": "dorp"}, "near_duplicates cannot be 'dorp'", "did you mean 'drop'?"),
    ({"truncation": "tial"}, "truncation cannot be 'tial'", "did you mean 'tail'?"),
    ({"max_characters": 0}, "max_characters cannot be 0", "positive"),
    ({"split": "author"}, "needs a column 'author', but", "another data.split"),
    ({"split": "film", "changes": {n: {"film": " "} for n in range(60)}}, "is empty", "fill"),
    ({"split": "film", "changes": {n: {"film": "А"} for n in range(60)}},
     "needs at least 3 groups of reviews, but there are 1", "another data.split"),
    ({"split": "time", "changes": {n: {"date": "2010-02-03"} for n in range(60)}},
     "all reviews have the same date", "another data.split"),
    ({"split": "time", "changes": {4: {"date": "вчера"}}}, "1 of 60 rows have no valid date",
     "2009"),
    ({"fold": 0}, "fold cannot be 0 without data.folds", "data.folds=5"),
    ({"folds": 5}, "fold cannot be None with data.folds=5", "from 0 to 4"),
    ({"folds": 5, "fold": 5}, "fold cannot be 5 with data.folds=5", "from 0 to 4"),
    ({"folds": 3, "fold": -1}, "fold cannot be -1", "data.fold=0,1,2"),
    ({"folds": 1, "fold": 0}, "folds cannot be 1", "2 or more"),
    ({"folds": 40, "fold": 0}, "too few rows", "more rows"),
    ({"split": "film", "folds": 20, "fold": 19}, "needs at least 20 groups", "fewer data.folds"),
    ({"split": "film", "folds": 12, "fold": 1}, "into test, but none", "fold"),
    ({"split": "predefined"}, "split_column cannot be None with data.split=predefined", "both"),
    ({"split_column": "side"}, "split_column cannot be 'side' with data.split=random", "both"),
    ({"split": "predefined", "split_column": "sied"}, "did you mean 'side'", "set"),
    ({"split": "predefined", "split_column": "odd"}, "did you mean 'test'?", "train, val"),
    ({"split": "predefined", "split_column": "side", "changes": {4: {"side": None}}},
     "1 of 60 rows have an unknown split, such as '': valid names", "train, val"),
    ({"class_names": ["Bad", "Good", "Bad "]}, "class_names contains 'Bad' twice", "once"),
    ({"changes": {n: {"label": n} for n in range(60)}}, "4 1 and 55 more", "the rare classes"),
    ({"split": "predefined", "split_column": "half"}, "no row is assigned to val", "three splits"),
    ({"split": "predefined", "split_column": "poor"}, "into train, but none",
     "assign rows"),
    ({"split": "predefined", "split_column": "side", "folds": 3, "fold": 0},
     "folds cannot be 3 with data.split=predefined", "data.folds=null"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "what", "fix"), MISTAKES)
def test_mistakes(tmp_path: Path, options: dict[str, Any], what: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        local(tmp_path, **options).load()
    assert what in caught.value.what
    assert fix in (caught.value.fix or "")


def test_places_of_unreadable_dates_and_parts(tmp_path: Path) -> None:
    for options, line in (
        ({"split": "time", "changes": {4: {"date": ""}}}, 5),
        ({"split": "predefined", "split_column": "odd"}, 8),
    ):
        with pytest.raises(UserError) as caught:
            local(tmp_path, **options).load()
        assert caught.value.where == f"{tmp_path / 'reviews.jsonl'}:{line}"
