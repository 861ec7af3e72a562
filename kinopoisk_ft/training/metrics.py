"""Scores of a classification, by torchmetrics, with the average named in each key."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

LOWER_IS_BETTER = frozenset({"loss"})


def classification_scores(
    predicted: Tensor, labels: Tensor, num_classes: int | None = None
) -> dict[str, float]:
    """Return accuracy, f1_weighted and f1_macro of predicted and true classes, both (N,).

    A class that is neither predicted nor present is left out of the macro average.
    """
    predicted, labels = predicted.cpu(), labels.cpu()
    classes = num_classes or max(2, int(max(predicted.max(), labels.max())) + 1)
    return {
        "accuracy": multiclass_accuracy(predicted, labels, classes, average="micro").item(),
        "f1_weighted": multiclass_f1_score(predicted, labels, classes, average="weighted").item(),
        "f1_macro": multiclass_f1_score(predicted, labels, classes, average="macro").item(),
    }


def majority_scores(train_labels: np.ndarray, test_labels: np.ndarray) -> dict[str, float]:
    """Return the scores of always answering the train split's most frequent class."""
    majority = int(np.bincount(train_labels).argmax())
    labels = torch.tensor(test_labels)
    return classification_scores(torch.full_like(labels, majority), labels)


def per_class(
    predicted: Tensor, labels: Tensor, class_names: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """Return precision, recall, f1 and support of each class by name."""
    n = len(class_names)
    columns = {
        "precision": multiclass_precision(predicted, labels, n, average=None),
        "recall": multiclass_recall(predicted, labels, n, average=None),
        "f1": multiclass_f1_score(predicted, labels, n, average=None),
        "support": torch.bincount(labels, minlength=n),
    }
    return {
        name: {key: float(values[i]) for key, values in columns.items()}
        for i, name in enumerate(class_names)
    }


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> np.ndarray:
    """Return the confusion matrix (true class, predicted class)."""
    matrix: np.ndarray = multiclass_confusion_matrix(predicted, labels, num_classes).numpy()
    return matrix
