"""Find out whether a model has learned anything, by the criteria of `check_learned`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.statistics.bootstrap import ALPHA, resample
from kinopoisk_ft.statistics.metrics import CORRELATION, HEADLINE, count_confusion, scores
from kinopoisk_ft.tasks.result import Fitted
from kinopoisk_ft.text import to_one_line

# The smallest possible p-value is 1 / (RESAMPLES + 1), far below ALPHA.
RESAMPLES = 2000
# With fewer logged training losses, their trend is too uncertain.
FEWEST_LOSSES = 8
ADVICE = (
    "Try more epochs (trainer.epochs) or reviews, another learning rate (trainer.lr), or another "
    "part of the reviews (data.truncation)."
)


def check_learned(fitted: Fitted, data: DataSplit) -> tuple[str, str]:
    """Check that a model is better than the majority class, and that the training loss fell.

    Returns:
        A warning, and the failed checks, such as "test, validation, training loss". Both strings
        are empty if no check failed.
    """
    test, val = fitted.test_probabilities, fitted.val_probabilities
    reasons = {
        "test": _compare_with_majority("test", data.test, test, data),
        "validation": _compare_with_majority("validation", data.val, val, data),
        # With an output layer that is already fitted, the loss starts low and need not fall.
        "training loss": "" if fitted.head_was_fitted else _compare_losses(fitted),
    }
    failed = [name for name, why in reasons.items() if why]
    if not failed:
        return "", ""
    warning = "There is no evidence that this model has learned, so do not compare its score."
    return f"{reasons[failed[0]]} {warning} {ADVICE}", ", ".join(failed)


def _compare_with_majority(
    name: str, part: pd.DataFrame, probabilities: np.ndarray, data: DataSplit
) -> str:
    """Return a message if a model is not significantly better than the majority class, else "".

    A one-sided bootstrap test checks whether the Matthews correlation coefficient of the model
    is above 0. Always predicting the majority class gives 0, and random answers give about 0. Other
    metrics could mislead: random answers have a higher weighted F1 than the majority class, and a
    model that finds a rare class may have a lower accuracy than the majority class.
    """
    labels, classes = part["label"].to_numpy(), len(data.class_names)
    majority = int(np.bincount(data.train["label"]).argmax())
    # (2, N): the classes predicted by the model, and the majority class.
    predicted = np.stack([probabilities.argmax(axis=1), np.full(len(labels), majority)])
    # Reviews of the same group, for example of a film, are not independent. Draw whole groups.
    groups = part["group"].to_numpy() if "group" in part else None
    scored = resample(labels, predicted[:1], classes, groups=groups, resamples=RESAMPLES)
    # Adding 1 to both numbers avoids p = 0 (Davison and Hinkley, 1997, chapter 4).
    p = float((1 + np.sum(scored[CORRELATION].resampled <= 0)) / (RESAMPLES + 1))
    if p <= ALPHA:
        return ""
    model, floor = scores(count_confusion(labels, predicted, classes))[HEADLINE]
    # Class names come from the data, and may contain control characters.
    usual = to_one_line(data.class_names[majority])
    return (
        f"Not significantly above the majority class: {HEADLINE} {model:.3f} on {name}, "
        f"{floor:.3f} for always predicting '{usual}' (p {p:.2g})."
    )


def _compare_losses(fitted: Fitted) -> str:
    """Return a message if the training loss has not fallen, else ""."""
    losses = [row["train_loss"] for row in fitted.history if "train_loss" in row]
    if len(losses) < FEWEST_LOSSES:
        return ""
    # Means are compared, because single losses vary from batch to batch.
    quarter = len(losses) // 4
    first, last = np.mean(losses[:quarter]), np.mean(losses[-quarter:])
    # The comparison is false for NaN.
    if last < first:
        return ""
    return (
        f"The training loss has not fallen: {first:.3f} in the first quarter of the steps, "
        f"{last:.3f} in the last one."
    )
