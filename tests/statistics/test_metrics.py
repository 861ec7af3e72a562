"""Metrics against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from kinopoisk_ft.training.metrics import classification_scores, confusion, majority_scores


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
def test_metrics_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    guess, labels = (np.array(column) for column in zip(*pairs, strict=True))
    scores = classification_scores(torch.tensor(guess), torch.tensor(labels), 3)
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, guess), abs=1e-6)
    for average in ("weighted", "macro"):
        expected = f1_score(labels, guess, average=average, zero_division=0)
        assert scores[f"f1_{average}"] == pytest.approx(expected, abs=1e-6)
    matrix = confusion(torch.tensor(guess), torch.tensor(labels), 3)
    assert np.array_equal(matrix, confusion_matrix(labels, guess, labels=[0, 1, 2]))


def test_majority_is_the_train_splits() -> None:
    scores = majority_scores(np.array([1, 1, 0]), np.array([0, 0, 0, 1]))
    assert scores["accuracy"] == 0.25
