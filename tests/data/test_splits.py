"""Check the parts of splits by film, author and date, and of folds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from composing import compose_config
from hydra.utils import instantiate
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from quick import quick
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from kinopoisk_ft.data.split_rules import DateRule
from kinopoisk_ft.data.splits import Parts, Shares, group_rows, split_rows
from kinopoisk_ft.errors import UserError

NAMES = ("Bad", "Good")

SHARES = Shares(0.2, 0.2, 42)

WAYS = ("random", "film", "author", "time")


def table(number: int, seed: int = 0) -> pd.DataFrame:
    """Build rows of films with different sizes and labels, without texts."""
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
    return split_rows(frame, group_rows(frame, near, way), NAMES, way, shares)


def alone(number: int) -> np.ndarray:
    """Return the group numbers of texts without near-duplicates."""
    return np.arange(number)


ROWS = {
    "films": st.lists(st.integers(0, 12), min_size=40, max_size=120),
    "near": st.lists(st.integers(0, 60), min_size=120, max_size=120),
    "seed": st.integers(0, 99),
    "way": st.sampled_from(WAYS),
    "folds": st.sampled_from([None, 2, 3]),
}


def check_sides(films: list[int], near: list[int], seed: int, way: str, folds: int | None) -> None:
    """Each row is in exactly one part, and groups stay together, for any rows."""
    rng = np.random.default_rng(seed)
    number = len(films)
    frame = table(number, seed).assign(
        label=rng.integers(0, 2, number), film=[f"{film}" for film in films]
    )
    groups = np.array(near[:number])
    shares = Shares(0.2, 0.2, seed, folds, None if folds is None else seed % folds)
    try:
        parts = parted(frame, groups, way, shares)
    # With so few films, a part would have no row of a class.
    except UserError:
        reject()
    assert sorted(np.concatenate(parts)) == list(range(number))
    if way == "random" and folds is None:
        # The split of the study does not keep near-duplicates together.
        return
    ties = {"film": frame["film"], "author": frame["author"]}
    for values in [pd.Series(groups), *([ties[way]] if way in ties else [])]:
        sides = [set(values.iloc[part]) for part in parts]
        assert sum(map(len, sides)) == len(set().union(*sides))


@pytest.mark.parametrize("examples", quick([40, 150], 1))
def test_no_film_and_no_duplicate_on_both_sides(examples: int) -> None:
    # Settings can be applied to a function only once.
    settings(max_examples=examples)(given(**ROWS)(check_sides))()


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
        for fold, (_, test) in enumerate(expected):
            shares = Shares(0.2, 0.2, 42, 5, fold)
            assert parted(frame, alone(600), way, shares)[2].tolist() == test.tolist()


def test_random_is_the_studys_with_duplicates_or_without() -> None:
    frame = table(500)
    labels = frame["label"].tolist()
    rest, test = train_test_split(range(500), test_size=0.2, random_state=42, stratify=labels)
    kept = [labels[row] for row in rest]
    train, val = train_test_split(rest, test_size=0.2, random_state=42, stratify=kept)
    found = parted(frame, np.zeros(500, dtype=int), "random")
    assert [part.tolist() for part in found] == [train, val, test]


@pytest.mark.parametrize("choice", quick(["experiment=study_bert_lora", "data=kinopoisk"], 1))
def test_the_studys_sizes_through_the_config(tmp_path: Path, choice: str) -> None:
    """Repeated texts with different labels also stay together."""
    grades = np.random.default_rng(0).choice(["Good", "Bad"], 32_015, p=[0.8, 0.2])
    path = tmp_path / "kinopoisk.jsonl"
    table = pd.DataFrame({"content": [f"отзыв {row % 9000}" for row in range(32_015)]})
    table.assign(grade3=grades).to_json(path, orient="records", lines=True)
    split = instantiate(compose_config([choice, f"data.path={path}"]).data).load()
    assert [len(part) for part in (split.train, split.val, split.test)] == [20_489, 5_123, 6_403]


@pytest.mark.parametrize("way", ["film", "author"])
def test_whole_films_are_balanced(way: str) -> None:
    """Shares of rows and classes are close to the requested ones; the seed chooses the films."""
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
def test_parts_name_the_groups_kept_together(tmp_path: Path, way: str, kept: bool) -> None:
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


def test_a_film_without_a_name_is_a_group_by_itself() -> None:
    frame = table(600).assign(film=["Чапаев", None, " "] * 200)
    parts = parted(frame, alone(600), "film")
    sizes = [len(part) for part in parts]
    named = [part for part in parts if (frame["film"].iloc[part] == "Чапаев").any()]
    assert min(sizes) > 50
    assert len(named) == 1


def test_time_trains_on_the_oldest_and_tests_on_the_newest() -> None:
    """The sizes are those of scikit-learn, which rounds up the number of held-out rows."""
    frame = table(603)
    train, val, test = parted(frame, alone(603), "time")
    rest, held_out = train_test_split(range(603), test_size=0.2)
    assert (len(test), len(val)) == (len(held_out), len(train_test_split(rest, test_size=0.2)[1]))
    assert len(train) + len(val) == len(rest)
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


def test_near_duplicates_at_a_boundary_in_time_are_in_the_newer_part() -> None:
    frame = pd.DataFrame({"date": [f"2010-01-{day:02}" for day in range(1, 11)]})
    rule = DateRule(frame, np.array([0, 1, 2, 3, 4, 5, 6, 7, 7, 7]), seed=0)
    assert rule.hold_out(np.arange(10), 0.2).tolist() == [7, 8, 9]
    assert [part.tolist() for part in rule.folds(5)[3:]] == [[6], [7, 8, 9]]
