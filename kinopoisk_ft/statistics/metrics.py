"""Define all metrics.

To add a metric, write a function and add an entry to `METRICS`. A label for the report is optional.
Labels are in reporting/locale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from sklearn.metrics import brier_score_loss, log_loss

# Number of equal-width bins for the expected calibration error. Guo, C. et al. (2017). On
# Calibration of Modern Neural Networks.
BINS = 15

Shown = Literal["results", "differences", "slices", "threshold", "calibration", "reliability"]
Scores = dict[str, np.ndarray]


@dataclass(frozen=True)
class Metric:
    """A metric of a classifier.

    If `of_counts` and `of_probabilities` are None, the training objective computes the metric.

    Args:
        name: name in result.json and `trainer.best_metric`. In MLflow, the name has the prefix
            `test_` or `val_`.
        of_counts: maps confusion matrices (..., true class, predicted class) to values (...).
        of_probabilities: maps probabilities (N, classes) and labels (N,) to a number.
        shown_in: the tables and figures of the report that show the metric.
        mark: name of the CSV and JSON column that marks the row with the best value.
        headline: True for the one metric that ranks the approaches.
        proportion: True if the value is a fraction of reviews, so that Wilson's interval applies.
        lowest: the smallest possible value.
    """

    name: str
    of_counts: Callable[[np.ndarray], np.ndarray] | None = None
    of_probabilities: Callable[[np.ndarray, np.ndarray], float] | None = None
    lower_is_better: bool = False
    unit: str = ""
    digits: int = 4
    shown_in: tuple[Shown, ...] = ()
    mark: str = ""
    headline: bool = False
    proportion: bool = False
    lowest: float = 0.0

    def __call__(self, probabilities: np.ndarray, labels: np.ndarray) -> float:
        """Compute the metric from probabilities (N, classes) and labels (N,)."""
        if self.of_probabilities:
            return self.of_probabilities(probabilities, labels)
        assert self.of_counts, f"{self.name} is computed by the training objective"
        counts = count_confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1])
        return float(self.of_counts(counts))


def count_confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return confusion matrices (..., true, predicted).

    Labels are (N,), and predictions are (..., N).
    """
    # Each pair (true, predicted) becomes one number, so that `bincount` counts all pairs at once.
    cells = (labels * classes + predicted).reshape(-1, len(labels))
    counts = [np.bincount(run, minlength=classes * classes) for run in cells]
    return np.stack(counts).reshape(*predicted.shape[:-1], classes, classes)


def _accuracy(counts: np.ndarray) -> np.ndarray:
    share: np.ndarray = np.trace(counts, axis1=-2, axis2=-1) / counts.sum(axis=(-2, -1))
    return share


def _f1_by_class(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (F1, true count, true count + predicted count) by class, each (..., classes)."""
    true = counts.sum(axis=-1)
    both = true + counts.sum(axis=-2)
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    # F1 = 2 TP / (2 TP + FP + FN). The denominator is the true count + the predicted count.
    return _divide(2.0 * hits, both), true, both


def _f1_weighted(counts: np.ndarray) -> np.ndarray:
    # This is scikit-learn's `f1_score` with average="weighted".
    f1, true, _ = _f1_by_class(counts)
    mean: np.ndarray = (f1 * true).sum(axis=-1) / true.sum(axis=-1)
    return mean


def _f1_macro(counts: np.ndarray) -> np.ndarray:
    f1, _, both = _f1_by_class(counts)
    # Only classes that occur in labels or predictions are averaged, as in torchmetrics.
    mean: np.ndarray = f1.sum(axis=-1) / (both > 0).sum(axis=-1)
    return mean


def _matthews(counts: np.ndarray) -> np.ndarray:
    # Gorodkin, J. (2004). Comparing two K-category assignments by a K-category correlation
    # coefficient.
    # The product of squared counts would overflow int64.
    counts = counts.astype(np.float64)
    true, predicted, n = counts.sum(axis=-1), counts.sum(axis=-2), counts.sum(axis=(-2, -1))
    covariance = np.trace(counts, axis1=-2, axis2=-1) * n - (true * predicted).sum(axis=-1)
    spread = (n**2 - (true**2).sum(axis=-1)) * (n**2 - (predicted**2).sum(axis=-1))
    return _divide(covariance, np.sqrt(spread))


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    # An undefined ratio is 0, as with scikit-learn's zero_division=0.
    zeros = np.zeros(np.shape(denominator))
    return np.divide(numerator, denominator, out=zeros, where=denominator > 0)


def bin_confidence(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the confidence and the bin of each review, both (N,).

    The confidence is the highest class probability. Bins are numbered from 0.
    """
    confidence = probabilities.max(axis=1)
    # A confidence of 1 belongs to the last bin.
    return confidence, np.minimum((confidence * BINS).astype(int), BINS - 1)


def _calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    confidence, bins = bin_confidence(probabilities)
    # The sum over a bin is the number of reviews times (accuracy - confidence).
    gaps = np.bincount(bins, weights=(probabilities.argmax(axis=1) == labels) - confidence)
    return float(np.abs(gaps).sum() / len(labels))


def _brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    # The range is 0 to 1 for two classes, and 0 to 2 for more classes.
    return float(brier_score_loss(labels, probabilities, labels=range(probabilities.shape[1])))


def log_loss_of(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the labels (N,), in nats."""
    return float(log_loss(labels, probabilities, labels=range(probabilities.shape[1])))


TABLES: tuple[Shown, ...] = ("results", "differences", "slices", "threshold")
METRICS = (
    Metric("accuracy", _accuracy, shown_in=TABLES, mark="best_accuracy", proportion=True),
    Metric("f1_weighted", _f1_weighted, shown_in=TABLES, mark="best_f1", headline=True),
    Metric("f1_macro", _f1_macro, shown_in=("results", "differences")),
    Metric("mcc", _matthews, shown_in=("results",), lowest=-1.0),
    Metric("loss", lower_is_better=True),
    Metric("ece", None, _calibration_error, lower_is_better=True,
           shown_in=("calibration", "reliability")),
    Metric("brier", None, _brier, lower_is_better=True, shown_in=("calibration",)),
    Metric("nll", None, log_loss_of, lower_is_better=True, unit="nats", shown_in=("calibration",)),
)  # fmt: skip
# Metrics that are computed from confusion matrices, also for many resamples at once.
COUNTED = tuple(metric for metric in METRICS if metric.of_counts)
MARKED = tuple(metric.name for metric in METRICS if metric.mark)
# The share of correct answers.
(ACCURACY,) = (metric.name for metric in METRICS if metric.of_counts is _accuracy)
# Matthews correlation coefficient: 0 for the majority class and for random answers.
(CORRELATION,) = (metric.name for metric in METRICS if metric.of_counts is _matthews)
# The unpacking fails unless exactly one metric has the attribute `headline`.
(HEADLINE,) = (metric.name for metric in METRICS if metric.headline)
LOWER_IS_BETTER = frozenset(metric.name for metric in METRICS if metric.lower_is_better)
# Each of these can select the best checkpoint, because every validation computes all of them.
SELECTABLE = tuple(metric.name for metric in METRICS if metric.of_probabilities is None)
# Type checkers do not accept a variable in `Literal`.
if TYPE_CHECKING:
    BestMetric = str
else:
    BestMetric = Literal[SELECTABLE]


def shown_in(table: Shown) -> list[Metric]:
    """Return the metrics that a table of the report shows."""
    return [metric for metric in METRICS if table in metric.shown_in]


def headline_first(metrics: Iterable[Metric]) -> list[Metric]:
    """Return the metrics in the same order, but with the headline metric first."""
    return sorted(metrics, key=lambda metric: not metric.headline)


def scores(counts: np.ndarray) -> Scores:
    """Compute all metrics that depend only on the predicted classes, such as accuracy and F1.

    `counts` are confusion matrices (..., true, predicted).
    """
    return {metric.name: metric.of_counts(counts) for metric in COUNTED if metric.of_counts}


def classification_scores(outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute all metrics that depend only on the predicted classes, such as accuracy and F1.

    `outputs` are probabilities or logits (N, classes).
    """
    return {metric.name: metric(outputs, labels) for metric in COUNTED}


def majority_scores(train_labels: np.ndarray, test_labels: np.ndarray) -> dict[str, float]:
    """Return the test scores of the majority-class baseline.

    This baseline always predicts the most frequent class of the train split.
    """
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    # The class counts act as logits: their argmax is the majority class.
    usual = np.bincount(train_labels, minlength=classes)
    return classification_scores(np.tile(usual, (len(test_labels), 1)), test_labels)


def per_class(counts: np.ndarray, class_names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and support of each class.

    `counts` is a confusion matrix (true, predicted).
    """
    f1, true, both = _f1_by_class(counts)
    hits = np.diagonal(counts)
    columns = {
        # `both - true` is the number of predictions of each class.
        "precision": _divide(hits, both - true),
        "recall": _divide(hits, true),
        "f1": f1,
        "support": true,
    }
    return {
        name: {key: float(values[i]) for key, values in columns.items()}
        for i, name in enumerate(class_names)
    }
