"""Check that smaller train splits are nested, have the same classes, and keep whole films."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kinopoisk_ft.data.label_budget import _order_rows, limit_rows
from kinopoisk_ft.data.local import LocalFile
from kinopoisk_ft.errors import UserError

RNG = np.random.default_rng(1)
LABELS = (RNG.random(3000) < 0.7).astype(np.int64)
SIZES = np.ceil(np.exp(RNG.normal(2.2, 1.3, 200))).astype(int)
FILMS = RNG.permutation(np.repeat(np.arange(200), SIZES))[:3000]


@pytest.mark.parametrize("groups", [None, FILMS], ids=["rows", "films"])
def test_subsets_are_nested_and_keep_the_proportions(groups: np.ndarray | None) -> None:
    before: set[int] = set()
    for limit in (100, 300, 1000, 0.5, 2500):
        rows = limit_rows(LABELS, groups, limit, seed=3)
        assert (np.diff(rows) > 0).all()
        assert before <= set(rows)
        before = set(rows)
        wanted = limit if limit >= 1 else limit * len(LABELS)
        assert len(rows) == pytest.approx(wanted, rel=0 if groups is None else 0.2)
        assert LABELS[rows].mean() == pytest.approx(LABELS.mean(), abs=0.02)
    assert set(limit_rows(LABELS, groups, 1000, seed=4)) != set(limit_rows(LABELS, groups, 1000, 3))


def test_the_first_rows_are_not_biased_towards_rare_classes() -> None:
    labels = np.repeat([0, 1], [900, 100])
    rare = [labels[_order_rows(labels, np.random.default_rng(i))[:5]].sum() for i in range(400)]
    # The standard deviation of this mean is 0.025.
    assert np.mean(rare) == pytest.approx(0.5, abs=0.1)


def test_films_are_kept_whole() -> None:
    rows = limit_rows(LABELS, FILMS, 400, seed=0)
    kept = set(FILMS[rows])
    assert len(rows) == sum(np.isin(FILMS, list(kept)))


@pytest.mark.parametrize(("films", "size"), [(8, 50), (30, 60), (8, 10), (3, 40)])
def test_small_subsets_depend_on_the_seed(films: int, size: int) -> None:
    sizes = size + np.random.default_rng(0).integers(0, 15, films)
    groups = np.repeat(np.arange(films), sizes)
    labels = LABELS[: len(groups)]
    subsets = {tuple(limit_rows(labels, groups, size, seed)) for seed in range(10)}
    assert len(subsets) > 1
    assert all(len(subset) <= 2 * size for subset in subsets)


def test_all_rows_are_the_largest_subset() -> None:
    assert np.array_equal(limit_rows(LABELS, None, 3000, seed=0), np.arange(3000))
    assert np.array_equal(limit_rows(LABELS, FILMS, 3000, seed=0), np.arange(3000))


def test_too_many_and_too_few_rows_are_refused() -> None:
    with pytest.raises(UserError, match="train_limit=3001 is more than the 3,000 reviews"):
        limit_rows(LABELS, None, 3001, seed=0)
    rare = np.zeros(100, dtype=np.int64)
    rare[0] = 1
    with pytest.raises(UserError, match="leaves 1 of the classes without reviews"):
        limit_rows(rare, None, 2, seed=0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    frame = pd.DataFrame({"text": [f"отзыв номер {n} о фильме" for n in range(600)]})
    frame["label"] = np.where(np.arange(600) % 3 > 0, "Good", "Bad")
    frame["film"] = [f"film {n // 6}" for n in range(600)]
    frame.to_csv(path, index=False)
    return path


def load(file: Path, **options: object):  # type: ignore[no-untyped-def]
    base = {"limit": None, "classes": 2, "max_length": 8, "empty": "drop", "path": str(file),
            "text_column": "text", "label_column": "label", "class_names": None}  # fmt: skip
    return LocalFile(**{**base, **options}).load()


@pytest.mark.parametrize("split", ["random", "film"])
def test_validation_and_test_do_not_change(file: Path, split: str) -> None:
    whole = load(file, split=split)
    part = load(file, split=split, train_limit=90, train_seed=5)
    assert part.split_digest == whole.split_digest
    pd.testing.assert_frame_equal(part.val, whole.val)
    pd.testing.assert_frame_equal(part.test, whole.test)
    assert set(part.train["row"]) < set(whole.train["row"])
    assert part.counts["train"] == len(part.train) == 90
    assert part.counts["beyond_train_limit"] == len(whole.train) - 90
    if split == "film":
        assert (part.train.groupby("film").size() == 6).all()


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_other_numbers_are_refused(file: Path, value: float) -> None:
    with pytest.raises(UserError, match="train_limit cannot be"):
        load(file, train_limit=value)
