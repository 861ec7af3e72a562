"""Who trains, validates and tests: by film, author, date, column, and in folds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from composing import compose_config
from hydra.utils import instantiate
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from kinopoisk_ft import names
from kinopoisk_ft.data import leakage
from kinopoisk_ft.data.dates import parse_date
from kinopoisk_ft.data.duplicates import (
    _folded,
    _head,
    _tail,
    drop_near_duplicates,
    fold_text,
    near_duplicates,
)
from kinopoisk_ft.data.groups import linked
from kinopoisk_ft.data.kinopoisk import Kinopoisk
from kinopoisk_ft.data.local import LocalFile
from kinopoisk_ft.data.partition import Shares, split_rows, tied
from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.data.splits import Parts
from kinopoisk_ft.errors import UserError
from kinopoisk_ft.names import fold_name

NAMES = ("Bad", "Good")
SHARES = Shares(0.2, 0.2, 42)
WAYS = ("random", "film", "author", "time")


def table(number: int, seed: int = 0) -> pd.DataFrame:
    """Return rows of films of unlike sizes and labels, without texts."""
    rng = np.random.default_rng(seed)
    films = (80 * rng.beta(1, 3, number)).astype(int)
    ordinals = 730_000 + rng.integers(0, 4000, number)
    return pd.DataFrame(
        {
            "label": (rng.random(number) < 0.3 + 0.5 * (films % 2)).astype(np.int64),
            "film": [f"Фильм {film}" for film in films],
            "author": [f"автор {author}" for author in rng.integers(0, number // 3, number)],
            "date": [pd.Timestamp.fromordinal(day).strftime("%Y-%m-%d") for day in ordinals],
            "place": [f"row {row}" for row in range(number)],
        }
    )


def parted(frame: pd.DataFrame, near: np.ndarray, way: str, shares: Shares = SHARES) -> Parts:
    return split_rows(frame, tied(frame, near, way), NAMES, way, shares)


def alone(number: int) -> np.ndarray:
    """Return group numbers of texts that are all different."""
    return np.arange(number)


@given(
    films=st.lists(st.integers(0, 12), min_size=40, max_size=120),
    near=st.lists(st.integers(0, 60), min_size=120, max_size=120),
    seed=st.integers(0, 99),
    way=st.sampled_from(WAYS),
    folds=st.sampled_from([None, 2, 3]),
)
@settings(max_examples=150, deadline=None)
def test_no_film_and_no_duplicate_on_both_sides(
    films: list[int], near: list[int], seed: int, way: str, folds: int | None
) -> None:
    """Each row is in one part, whatever the rows; what belongs together stays together."""
    rng = np.random.default_rng(seed)
    number = len(films)
    frame = table(number, seed).assign(
        label=rng.integers(0, 2, number), film=[f"{film}" for film in films]
    )
    groups = np.array(near[:number])
    shares = Shares(0.2, 0.2, seed, folds, None if folds is None else seed % folds)
    try:
        parts = parted(frame, groups, way, shares)
    except UserError:  # so few films that some part would have no row of a class
        reject()
    assert sorted(np.concatenate(parts)) == list(range(number))
    if way == "random" and folds is None:
        return  # the study's, which keeps no near-duplicates together
    ties = {"film": frame["film"], "author": frame["author"]}
    for values in [pd.Series(groups), *([ties[way]] if way in ties else [])]:
        sides = [set(values.iloc[part]) for part in parts]
        assert sum(map(len, sides)) == len(set().union(*sides))


@pytest.mark.parametrize("way", WAYS)
def test_folds_partition_the_rows(way: str) -> None:
    frame = table(600)
    tests = [parted(frame, alone(600), way, Shares(0.2, 0.2, 42, 4, fold))[2] for fold in range(4)]
    assert sorted(np.concatenate(tests)) == list(range(600))
    assert all(len(test) > 60 for test in tests)


def test_folds_are_scikit_learns() -> None:
    frame = table(600)
    labels = frame["label"].to_numpy()
    plain = StratifiedKFold(5, shuffle=True, random_state=42).split(labels, labels)
    grouped = StratifiedGroupKFold(5, shuffle=True, random_state=42)
    by_film = grouped.split(labels, labels, pd.factorize(frame["film"])[0])
    for way, expected in (("random", plain), ("film", by_film)):
        for fold, (_, held) in enumerate(expected):
            shares = Shares(0.2, 0.2, 42, 5, fold)
            assert parted(frame, alone(600), way, shares)[2].tolist() == held.tolist()


def test_random_is_the_studys_with_duplicates_or_without() -> None:
    frame = table(500)
    labels = frame["label"].tolist()
    rest, test = train_test_split(range(500), test_size=0.2, random_state=42, stratify=labels)
    kept = [labels[row] for row in rest]
    train, val = train_test_split(rest, test_size=0.2, random_state=42, stratify=kept)
    found = parted(frame, np.zeros(500, dtype=int), "random")
    assert [part.tolist() for part in found] == [train, val, test]


@pytest.mark.parametrize("choice", ["data=kinopoisk", "experiment=study_bert_lora"])
def test_the_studys_sizes_through_the_config(tmp_path: Path, choice: str) -> None:
    """Repeated texts with unlike labels, too, keep their rows under this name."""
    grades = np.random.default_rng(0).choice(["Good", "Bad"], 32_015, p=[0.8, 0.2])
    path = tmp_path / "kinopoisk.jsonl"
    table = pd.DataFrame({"content": [f"отзыв {row % 9000}" for row in range(32_015)]})
    table.assign(grade3=grades).to_json(path, orient="records", lines=True)
    split = instantiate(compose_config([choice, f"data.path={path}"]).data).load()
    assert [len(part) for part in (split.train, split.val, split.test)] == [20_489, 5_123, 6_403]


@pytest.mark.parametrize("way", ["film", "author"])
def test_whole_films_are_balanced(way: str) -> None:
    """Shares of rows and of classes are near those asked for, and the seed chooses the films."""
    frame = table(3000)
    parts = parted(frame, alone(3000), way)
    mean = frame["label"].mean()
    for part, share in zip(parts, (0.64, 0.16, 0.2), strict=True):
        assert len(part) / 3000 == pytest.approx(share, abs=0.02)
        assert frame["label"].iloc[part].mean() == pytest.approx(mean, abs=0.02)
    again = parted(frame, alone(3000), way)
    other = parted(frame, alone(3000), way, Shares(0.2, 0.2, 43))
    assert parts[2].tolist() == again[2].tolist() != other[2].tolist()


@pytest.mark.parametrize(("way", "kept"), [("film", True), ("author", True), ("random", False)])
def test_the_parts_say_what_was_kept_together(tmp_path: Path, way: str, kept: bool) -> None:
    path = tmp_path / "r.jsonl"
    frame = table(300).drop(columns="place", errors="ignore")
    frame["content"] = [f"отзыв номер {i} про фильм" for i in range(300)]
    frame["grade3"] = frame["label"].map({0: "Bad", 1: "Good"})
    frame = frame.rename(columns={"film": "movie_name"})
    frame.to_json(path, orient="records", lines=True, force_ascii=False)
    cfg = compose_config([f"data.path={path}", f"data.split={way}"])
    split = instantiate(cfg.data).load()
    assert ("group" in split.test) == kept
    if kept:
        names = split.test.groupby("group")[way].nunique()
        assert (names == 1).all()
        assert not set(split.test["group"]) & set(split.train["group"])


def test_a_film_without_a_name_goes_alone() -> None:
    frame = table(600).assign(film=["Чапаев", None, " "] * 200)
    parts = parted(frame, alone(600), "film")
    sizes = [len(part) for part in parts]
    named = [part for part in parts if (frame["film"].iloc[part] == "Чапаев").any()]
    assert min(sizes) > 50
    assert len(named) == 1


def test_names_are_folded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folded: list[str] = []

    def count(form: str, name: str) -> str:
        folded.append(name)
        return name

    monkeypatch.setattr(names.unicodedata, "normalize", count)
    monkeypatch.setattr(leakage, "fold_name", lambda name: name)
    split = local(tmp_path, split="film").load()
    assert sorted(folded) == sorted(f"Фильм {row % 12}" for row in range(60))
    assert split.test.groupby("film")["group"].nunique().eq(1).all()


def test_time_trains_on_the_oldest_and_tests_on_the_newest() -> None:
    frame = table(600)
    train, val, test = parted(frame, alone(600), "time")
    assert (len(train), len(val), len(test)) == (384, 96, 120)
    date = frame["date"]
    assert date.iloc[train].max() <= date.iloc[val].min()
    assert date.iloc[val].max() <= date.iloc[test].min()


def test_an_old_twin_of_a_new_review_is_not_trained_on() -> None:
    frame = table(600)
    order = np.argsort(frame["date"].to_numpy(), kind="stable")
    near = alone(600)
    near[order[0]] = near[order[-1]]
    test = parted(frame, near, "time")[2]
    assert {order[0], order[-1]} <= set(test)


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2009-03-07", "2009-03-07"), (" 2009-03-07T14:55:00 ", "2009-03-07"),
        ("07.03.2009", "2009-03-07"), ("7.3.2009, 14:55", "2009-03-07"),
        ("7 марта 2009 | 14:55", "2009-03-07"), ("1 мая 2010", "2010-05-01"),
        ("31 Августа 2011 года", "2011-08-31"), ("12 июня 2012", "2012-06-12"),
        ("12 июля 2012", "2012-07-12"), ("30 февраля 2012", None), ("31.02.2012", None),
        ("7 брюмера 2009", None), ("2009", None), ("", None), (None, None), (2009, None),
    ],
)  # fmt: skip
def test_dates(text: object, day: str | None) -> None:
    found = parse_date(text)
    assert (found.isoformat() if found else None) == day


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Ёлки", "елки", True), ("«Брат»\xa02", "Брат 2", True), ("1408", "1408 (2007)", True),
        ("Ирония  судьбы (ТВ, 1975)", "ирония судьбы", True), ("Брат", "Брат 2", False),
        ("2012", "2012 [2009]", True), ("2012", "2009", False), ("Оно (сериал)", "Оно", False),
    ],
)  # fmt: skip
def test_names_of_films(one: str, other: str, same: bool) -> None:
    assert (fold_name(one) == fold_name(other)) is same
    assert fold_name("") is fold_name(None) is fold_name("(2009)") is None


@given(
    st.lists(
        st.tuples(st.none() | st.integers(0, 9), st.none() | st.integers(0, 9)),
        min_size=1,
        max_size=30,
    )
)
def test_linked_rows_are_the_connected_ones(rows: list[tuple[int | None, int | None]]) -> None:
    groups = linked([a for a, _ in rows], [b for _, b in rows])
    expected = list(range(len(rows)))
    for _ in rows:  # spread the least number until nothing moves
        for i, first in enumerate(rows):
            for j, second in enumerate(rows):
                if any(a == b is not None for a, b in zip(first, second, strict=True)):
                    expected[i] = expected[j] = min(expected[i], expected[j])
    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    assert all((groups[i] == groups[j]) == (expected[i] == expected[j]) for i, j in pairs)


LONG = " ".join(f"слово{n}" for n in range(60))


def test_near_duplicates() -> None:
    texts = [
        "Ещё раз: хорошо!", "еще   РАЗ хорошо", "еще раз плохо", LONG, f"{LONG} 9 из 10",
        f"А вот. {LONG}", LONG[:100], "!!!", "???", f"{LONG[:300]} иначе", f"другое {LONG[-130:]}",
    ]  # fmt: skip
    groups = near_duplicates(texts).tolist()
    assert groups[0] == groups[1] != groups[2]
    assert groups[3] == groups[4] == groups[5] == groups[9]
    assert len({groups[row] for row in (0, 2, 3, 6, 7, 8, 10)}) == 7


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["аё ", "ẞİ", "!?… ", "слово "]), st.integers(1, 150)),
                min_size=1, max_size=4))  # fmt: skip
def test_ends_of_texts_are_those_of_the_text_in_letters(pieces: list[tuple[str, int]]) -> None:
    """Folded as a whole or from its ends, a text has the same first and last letters."""
    text = "".join(piece * count for piece, count in pieces)
    letters = fold_text(text)
    ends = [letters[:120] or None, letters[-120:] or None]
    assert [_folded(text, _head), _folded(text, _tail)] == ends


def test_dropping_near_duplicates() -> None:
    frame = pd.DataFrame(
        {"text": list("абабва"), "label": ["Good", "Good", "Good", "Bad", "Bad", "Good"]}
    )
    kept, counts = drop_near_duplicates(frame)
    assert kept.index.tolist() == [0, 4]
    assert counts == {"dropped_conflicting_duplicates": 2, "dropped_near_duplicates": 2}


def local(folder: Path, **options: Any) -> LocalFile:
    """Return 60 reviews in a file, with options for a recipe."""
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


def test_cleaning_is_counted(tmp_path: Path) -> None:
    changes = {
        3: {"text": "ОТЗЫВ 1!"}, 5: {"text": "отзыв 0"}, 7: {"text": "отзыв 9. 8 из 10"},
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
    assert texts[7] == "отзыв 9. "


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"split": "flim"}, "split cannot be 'flim'", "did you mean 'film'?"),
    ({"near_duplicates": "dorp"}, "near_duplicates cannot be 'dorp'", "did you mean 'drop'?"),
    ({"truncation": "tial"}, "truncation cannot be 'tial'", "did you mean 'tail'?"),
    ({"max_characters": 0}, "max_characters cannot be 0", "positive"),
    ({"split": "author"}, "needs a column 'author', which the data lack", "another data.split"),
    ({"split": "film", "changes": {n: {"film": " "} for n in range(60)}}, "names its film", "fill"),
    ({"split": "film", "changes": {n: {"film": "А"} for n in range(60)}}, "too few rows", "more"),
    ({"split": "time", "changes": {4: {"date": "вчера"}}}, "1 of 60 rows have no date", "2009"),
    ({"fold": 0}, "fold cannot be 0 without data.folds", "data.folds=5"),
    ({"folds": 5}, "fold cannot be None with data.folds=5", "from 0 to 4"),
    ({"folds": 5, "fold": 5}, "fold cannot be 5 with data.folds=5", "from 0 to 4"),
    ({"folds": 3, "fold": -1}, "fold cannot be -1", "data.fold=0,1,2"),
    ({"folds": 1, "fold": 0}, "folds cannot be 1", "2 or more"),
    ({"folds": 40, "fold": 0}, "too few rows", "more rows"),
    ({"split": "film", "folds": 20, "fold": 19}, "too few rows", "more rows"),
    ({"split": "film", "folds": 12, "fold": 1}, "in test by data.split=film, none is '1'", "fold"),
    ({"split": "predefined"}, "split_column cannot be None with data.split=predefined", "both"),
    ({"split_column": "side"}, "split_column cannot be 'side' with data.split=random", "both"),
    ({"split": "predefined", "split_column": "sied"}, "did you mean 'side'", "set"),
    ({"split": "predefined", "split_column": "odd"}, "did you mean 'test'?", "train, val"),
    ({"split": "predefined", "split_column": "half"}, "no row is in val", "all three"),
    ({"split": "predefined", "split_column": "poor"}, "in train by data.split=predefined, none",
     "move rows"),
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
