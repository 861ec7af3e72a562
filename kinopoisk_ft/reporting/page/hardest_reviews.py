"""Find the reviews that most approaches misclassify."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.statistics.predictions import TEXT_CHARACTERS, Predictions
from kinopoisk_ft.text import replace_controls

MOST_SHOWN = 10


@dataclass(frozen=True)
class Answer:
    """The prediction of one approach for one review.

    Args:
        probability: probability of the predicted class, averaged over seeds, as a percentage.
        words: the words of the review as HTML, shaded by their effect on the prediction of the
            first seed; "" if this prediction was not explained.
    """

    name: str
    label: str
    probability: str
    right: bool
    words: Markup


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


def find_hardest(
    table: Table, predictions: Mapping[str, Predictions], count: int
) -> tuple[list[int], dict[str, str]]:
    """Return at most `count` of the hardest reviews, and one run of each approach.

    The reviews are given as row numbers in the source data, in the order of `hardest`. The runs
    are {approach: run id of its first seed}.
    """
    answered = _find_answers(table, predictions)
    rows = [int(_first(answered).rows[i]) for i in _choose(answered, count)]
    return rows, {row.name: row.runs[0].run_id for row in table.rows if row.name in answered}


def hardest(
    table: Table,
    predictions: Mapping[str, Predictions],
    locale: Locale,
    shaded: Mapping[tuple[str, int], str],
) -> list[HardReview]:
    """Return at most `MOST_SHOWN` reviews that more than half of the approaches misclassify.

    The reviews are sorted by the number of approaches that misclassify them, highest first. If
    these numbers are equal, the review with the lower mean probability of the true class comes
    first.
    """
    answered = _find_answers(table, predictions)
    chosen = _choose(answered, MOST_SHOWN)
    if not chosen:
        return []
    first, means = _first(answered), _average(answered)
    runs = {row.name: row.runs[0].run_id for row in table.rows}
    found = []
    for i in chosen:
        row, label = int(first.rows[i]), int(first.labels[i])
        answers = [
            Answer(
                name=name,
                label=first.class_names[mean.argmax()],
                probability=locale.percent(float(mean.max())),
                right=bool(mean.argmax() == label),
                # `shade_html` has escaped the words, so the template must not escape them again.
                words=Markup(shaded.get((runs[name], row), "")),
            )
            # `means[:, i]` is (approaches, classes).
            for name, mean in zip(answered, means[:, i], strict=True)
        ]
        found.append(HardReview(row, first.class_names[label], _excerpt(first, i), answers))
    return found


def _find_answers(
    table: Table, predictions: Mapping[str, Predictions]
) -> dict[str, list[Predictions]]:
    found: dict[str, list[Predictions]] = {}
    first = None
    for row in table.rows:
        runs = [predictions[run.run_id] for run in row.runs if run.run_id in predictions]
        first = first or (runs[0] if runs else None)
        # Approaches with other test reviews are left out, because answers are compared by position.
        if first and runs and not any(first.mismatch(run) for run in runs):
            found[row.name] = runs
    return found


def _first(answered: Mapping[str, list[Predictions]]) -> Predictions:
    return next(iter(answered.values()))[0]


def _average(answered: Mapping[str, list[Predictions]]) -> np.ndarray:
    """Return (approaches, N, classes) probabilities, averaged over the seeds of each approach."""
    return np.stack([np.mean([r.probabilities for r in rs], axis=0) for rs in answered.values()])


def _choose(answered: Mapping[str, list[Predictions]], count: int) -> list[int]:
    """Return the indices of at most `count` reviews in the test set, in the order of `hardest`."""
    if not answered:
        return []
    labels, means = _first(answered).labels, _average(answered)
    # (N,): the number of approaches that misclassify each review.
    wrong = (means.argmax(axis=2) != labels).sum(axis=0)
    # (N,): the probability of the true class, averaged over the approaches.
    given = means[:, np.arange(len(labels)), labels].mean(axis=0)
    # `np.lexsort` sorts by the last key first.
    order = np.lexsort((given, -wrong))
    return [int(i) for i in order if wrong[i] * 2 > len(answered)][:count]


def _excerpt(first: Predictions, i: int) -> str:
    text = replace_controls(str(first.facts["text"].iloc[i])) if "text" in first.facts else ""
    # Runs truncate recorded texts to this length, so the text may be incomplete. Earlier versions
    # recorded longer texts.
    if len(text) >= TEXT_CHARACTERS:
        text = text[: TEXT_CHARACTERS - 1].rstrip() + "…"
    return text
