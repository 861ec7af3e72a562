"""Find the reviews that most approaches misclassify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.statistics.predictions import TEXT_CHARACTERS, Predictions
from kinopoisk_ft.text import replace_controls

MOST_SHOWN = 10


@dataclass(frozen=True)
class Answer:
    """The prediction of one approach for one review.

    `probability` is the mean over seeds, formatted as a percentage.
    """

    name: str
    label: str
    probability: str
    right: bool


@dataclass(frozen=True)
class HardReview:
    """A review that most approaches misclassify.

    `row` is the row number in the source data, from 0. `text` is an excerpt, or "" if no text was
    recorded.
    """

    row: int
    label: str
    text: str
    answers: list[Answer]


def hardest(
    table: Table, predictions: Mapping[str, Predictions], locale: Locale
) -> list[HardReview]:
    """Return the reviews that more than half of the approaches misclassify.

    The reviews are sorted by the number of approaches that misclassify them, highest first. If
    these numbers are equal, the review with the lower mean probability of the true class comes
    first. Only the first `MOST_SHOWN` reviews are returned.
    """
    answered = _answered(table, predictions)
    if not answered:
        return []
    first = next(iter(answered.values()))[0]
    means = np.stack([np.mean([r.probabilities for r in rs], axis=0) for rs in answered.values()])
    # Predicted classes, (approaches, N).
    guesses = means.argmax(axis=2)
    wrong = (guesses != first.labels).sum(axis=0)
    given = means[:, np.arange(len(first.labels)), first.labels].mean(axis=0)
    order = np.lexsort((given, -wrong))
    chosen = [i for i in order if wrong[i] * 2 > len(answered)][:MOST_SHOWN]
    return [_review(int(i), first, list(answered), means, guesses, locale) for i in chosen]


def _answered(table: Table, predictions: Mapping[str, Predictions]) -> dict[str, list[Predictions]]:
    found: dict[str, list[Predictions]] = {}
    first = None
    for row in table.rows:
        runs = [predictions[run.run_id] for run in row.runs if run.run_id in predictions]
        first = first or (runs[0] if runs else None)
        if first and runs and not any(first.mismatch(run) for run in runs):
            found[row.name] = runs
    return found


def _review(
    i: int,
    first: Predictions,
    names: list[str],
    means: np.ndarray,
    guesses: np.ndarray,
    locale: Locale,
) -> HardReview:
    answers = [
        Answer(
            name=name,
            label=first.class_names[guesses[k, i]],
            probability=locale.percent(float(means[k, i, guesses[k, i]])),
            right=bool(guesses[k, i] == first.labels[i]),
        )
        for k, name in enumerate(names)
    ]
    return HardReview(
        int(first.rows[i]), first.class_names[first.labels[i]], _excerpt(first, i), answers
    )


def _excerpt(first: Predictions, i: int) -> str:
    text = replace_controls(str(first.facts["text"].iloc[i])) if "text" in first.facts else ""
    # Runs truncate recorded texts to this length, so the text may be incomplete. Earlier versions
    # recorded longer texts.
    if len(text) >= TEXT_CHARACTERS:
        text = text[: TEXT_CHARACTERS - 1].rstrip() + "…"
    return text
