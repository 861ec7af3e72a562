"""Compare metrics with scikit-learn, and test that the name of each occurs once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

import kinopoisk_ft
from kinopoisk_ft.statistics import metrics
from kinopoisk_ft.statistics.metrics import (
    classification_scores,
    count_confusion,
    majority_scores,
    per_class,
)

PACKAGE = Path(kinopoisk_ft.__file__).parent
CLASSES = 3
ORACLES = {
    "accuracy": accuracy_score,
    "f1_weighted": lambda y, p: f1_score(y, p, average="weighted", zero_division=0),
    "f1_macro": lambda y, p: f1_score(y, p, average="macro", zero_division=0),
    "mcc": matthews_corrcoef,
}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
def test_metrics_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = (np.array(column) for column in zip(*pairs, strict=True))
    found = classification_scores(np.eye(CLASSES)[predicted], labels)
    assert set(found) == set(ORACLES)
    for name, oracle in ORACLES.items():
        assert found[name] == pytest.approx(oracle(labels, predicted), abs=1e-9), name
    counts = count_confusion(labels, predicted, CLASSES)
    assert np.array_equal(counts, confusion_matrix(labels, predicted, labels=range(CLASSES)))
    report = per_class(counts, ("a", "b", "c"))
    expected = precision_recall_fscore_support(
        labels, predicted, labels=range(CLASSES), zero_division=0
    )
    for column, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[column] for row in report.values()] == pytest.approx(values.tolist())


def test_many_matrices_give_what_each_gives() -> None:
    counts = np.random.default_rng(0).integers(0, 40_000, (5, 2, CLASSES, CLASSES))
    together = metrics.scores(counts)
    for place in np.ndindex(5, 2):
        alone = metrics.scores(counts[place])
        for name, value in alone.items():
            assert together[name][place] == pytest.approx(value)


def test_majority_is_the_train_splits() -> None:
    scores = majority_scores(np.array([1, 1, 0]), np.array([0, 0, 0, 1]))
    assert scores["accuracy"] == 0.25


def test_one_metric_is_the_headline_and_lower_losses_are_better() -> None:
    assert metrics.HEADLINE == "f1_weighted"
    assert {"loss", "nll", "brier", "ece"} == metrics.LOWER_IS_BETTER
    assert {"loss", *ORACLES} == set(metrics.SELECTABLE)


def _texts(file: Path) -> Iterator[str]:
    """Yield the string constants of a file, except docstrings, and its attribute names."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_a_metric_is_named_once() -> None:
    """Only the table of metrics contains their names; all other code derives them."""
    # "loss" also occurs in training.
    names = "|".join(metric.name for metric in metrics.METRICS if metric.name != "loss")
    named = re.compile(rf"(test_|val_|majority_)?({names})(_calibrated|_threshold|_from_best)?")
    for file in sorted(PACKAGE.rglob("*.py")):
        if file != Path(metrics.__file__):
            assert not [text for text in _texts(file) if named.fullmatch(text)], file
