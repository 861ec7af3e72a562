"""Test that the search gives each recipe the same budget, and repeats no training."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
from composing import compose_config
from quick import quick

from tools import recipes
from tools.recipes import Found, Training


def found(approach: str, overrides: str, score: float) -> Found:
    return Found(approach, *recipes.FIRST, overrides, score, 0.1, "abc")


def test_every_recipe_has_the_same_budget() -> None:
    assert {len(trials) for trials in recipes.TRIALS.values()} == {8}
    assert all(trials[0] == "" for trials in recipes.TRIALS.values())
    assert len(recipes.OTHERS) == 5


@pytest.mark.parametrize("approach", quick(list(recipes.TRIALS), 1))
def test_every_trial_composes(approach: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCODER", "somewhere")
    configs = [
        compose_config([f"experiment=review_{approach}", *trial.split()])
        for trial in recipes.TRIALS[approach]
    ]
    assert len({str(config) for config in configs}) == 8


def test_the_two_best_trials_are_trained_on_everything_else() -> None:
    finished = [found("full", "a", 0.8), found("full", "b", 0.9), found("full", "c", 0.85)]
    planned = recipes.plan_second(["full", "lora"], finished)
    assert {one.overrides for one in planned} == {"b", "c"}
    assert len(planned) == 10
    assert Training("full", "random", "null", "b") in planned
    assert not any((one.split, one.labels) == recipes.FIRST for one in planned)


def test_finished_trainings_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "FOUND", tmp_path / "search.csv")
    assert recipes.read_found() == []
    for one in (found("full", "", 0.9), found("tfidf", "model.C=1", 0.8)):
        recipes.write(one)
    first, second = recipes.read_found()
    assert asdict(first) == asdict(found("full", "", 0.9))
    assert second.training == Training("tfidf", "film", "1000", "model.C=1")


def test_trainings_that_end_together_are_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "FOUND", tmp_path / "search.csv")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda score: recipes.write(found("full", "", score)), range(40)))
    assert sorted(one.val_f1_weighted for one in recipes.read_found()) == list(range(40))
