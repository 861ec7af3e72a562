"""Check which of the bundled reviews are read, in which order, and which requests are refused."""

from __future__ import annotations

import pytest

from kinopoisk_ft.data.demo import Demo
from kinopoisk_ft.errors import UserError


def recipe(**changes: int) -> Demo:
    keys = {"reviews": 400, "seed": 0, "classes": 2} | changes
    return Demo(limit=None, max_length=128, empty="refuse", **keys)


def test_recipe_splits() -> None:
    split = recipe().load()
    assert split.class_names == ("Bad", "Good")
    assert split.counts["rows_read"] == 400
    kept = (recipe().read()["label"] != "Neutral").sum()
    assert len(split.train) + len(split.val) + len(split.test) == kept
    assert recipe(classes=3).load().class_names == ("Bad", "Neutral", "Good")
    assert recipe(seed=1).load().source_digest != split.source_digest


def test_first_reviews_of_a_stable_order() -> None:
    whole, first = recipe(reviews=4000).read(), recipe(reviews=200).read()
    assert len(whole) == 4000
    assert first.equals(whole.head(200))
    other = recipe(reviews=4000, seed=1).read()
    assert list(other["text"]) != list(whole["text"])
    assert sorted(other["text"]) == sorted(whole["text"])
    assert other.equals(recipe(reviews=4000, seed=1).read())


def test_no_reviews_and_too_many_are_refused() -> None:
    with pytest.raises(UserError, match="reviews"):
        recipe(reviews=0)
    with pytest.raises(UserError, match=r"tools\.demo_reviews\.generate"):
        recipe(reviews=4001).read()
