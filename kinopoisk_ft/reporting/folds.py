"""Pool the test sets of cross-validation folds.

A single fold may have too few test reviews for a verdict.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pandas as pd

from kinopoisk_ft.reporting.columns import MAJORITY
from kinopoisk_ft.reporting.run_files import RunFiles
from kinopoisk_ft.reporting.runs import Collected, TrainedRun
from kinopoisk_ft.statistics.metrics import ACCURACY, count_confusion, scores
from kinopoisk_ft.statistics.predictions import Predictions

FOLDS, FOLD = "data.folds", "data.fold"
# Counts of test reviews, of which each is in one fold. A film may have reviews in several folds.
REVIEW_COUNTS = ("leakage_near_duplicates", "leakage_pretraining")


def pool_folds(collected: Collected, files: RunFiles) -> tuple[Collected, RunFiles]:
    """Replace the runs of a cross-validation, one per fold, by a single run with all test reviews.

    Runs stay separate if a fold or its predictions are missing. The single run has the run id of
    the first fold. Metrics that depend only on the predicted classes, such as F1, are computed from
    all test reviews, and so are the scores of the majority class. Counts of leaked reviews are
    summed over the folds. Other metrics, such as the training time and the number of films in both
    parts, are averaged. The calibration temperature is left out, because each fold has a different
    one.
    """
    # {training: {fold: run}}. The runs of one training differ only in their fold.
    trainings: dict[str, dict[int, TrainedRun]] = defaultdict(dict)
    runs = []
    for run in collected.runs:
        folds = run.settings.get(FOLDS, "None")
        if folds == "None" or run.run_id not in files.predictions:
            runs.append(run)
        else:
            settings = {key: value for key, value in run.settings.items() if key != FOLD}
            seeds = (run.seed, run.train_seed)
            key = str((run.approach, seeds, run.data, run.source_digest, settings))
            trainings[key][int(run.settings[FOLD])] = run
    predictions, details = dict(files.predictions), dict(files.details)
    run_of_row = {}
    for found in trainings.values():
        parts = [run for _, run in sorted(found.items())]
        answers = [files.predictions[run.run_id] for run in parts]
        complete = len(parts) == int(parts[0].settings[FOLDS])
        # Labels are indices into the class names, so all folds must have the same names.
        if complete and len({one.class_names for one in answers}) == 1:
            pooled = _join(answers)
            predictions[parts[0].run_id] = pooled
            run_of_row[parts[0].run_id] = {
                row: run.run_id
                for run, answer in zip(parts, answers, strict=True)
                for row in answer.rows.tolist()
            }
            if parts[0].run_id in details:
                # data.json describes the splits of only one fold.
                details[parts[0].run_id] = replace(details[parts[0].run_id], data={})
            runs.append(_pool(parts, answers, pooled))
        else:
            runs += parts
    return replace(collected, runs=runs), RunFiles(predictions, details, folds=run_of_row)


def _pool(parts: list[TrainedRun], answers: list[Predictions], pooled: Predictions) -> TrainedRun:
    first = parts[0]
    names = set.intersection(*(set(run.metrics) for run in parts)) - {"temperature"}
    metrics = {name: _combine(name, [run.metrics[name] for run in parts]) for name in names}
    # The F1 of all reviews is not the mean F1 of the folds. Forman, G. and Scholz, M. (2010).
    # Apples-to-Apples in Cross-Validation Studies.
    counts = count_confusion(pooled.labels, pooled.predicted, len(pooled.class_names))
    metrics |= {f"test_{name}": float(value) for name, value in scores(counts).items()}
    metrics |= _score_majority(parts, answers)
    digests = " ".join(run.split_digest for run in parts)
    # One fold that has not learned is enough to leave the approach out of the conclusions.
    failed = {run.not_learned for run in parts} - {""}
    return replace(
        first,
        settings={key: value for key, value in first.settings.items() if key != FOLD},
        metrics=metrics,
        command=_name_all_folds(first.command, first),
        overrides=_name_all_folds(first.overrides, first),
        # Two trainings have the same test reviews only if all of their folds do.
        split_digest=hashlib.sha256(digests.encode()).hexdigest(),
        not_learned=", ".join(sorted(failed)),
    )


def _score_majority(parts: list[TrainedRun], answers: list[Predictions]) -> dict[str, float]:
    """Return the scores of the majority class on all reviews, or {} if they are unknown."""
    key = MAJORITY[ACCURACY]
    accuracies = [run.metrics[key] for run in parts if key in run.metrics]
    if len(accuracies) < len(parts):
        return {}
    counts = np.zeros((len(answers[0].class_names),) * 2, dtype=int)
    for accuracy, answer in zip(accuracies, answers, strict=True):
        seen = np.bincount(answer.labels, minlength=len(counts))
        # A run records no majority class, but its accuracy is the share of this class.
        counts[:, np.abs(seen / seen.sum() - accuracy).argmin()] += seen
    return {f"majority_{name}": float(value) for name, value in scores(counts).items()}


def _combine(name: str, values: list[float]) -> float:
    return sum(values) if name in REVIEW_COUNTS else statistics.fmean(values)


def _name_all_folds(command: str, first: TrainedRun) -> str:
    """Change the command or the overrides of the first fold, so that they run all folds."""
    every = ",".join(map(str, range(int(first.settings[FOLDS]))))
    return command.replace(f"{FOLD}={first.settings[FOLD]}", f"-m {FOLD}={every}")


def _join(answers: list[Predictions]) -> Predictions:
    rows = np.concatenate([one.rows for one in answers])
    # `Predictions` are sorted by row, so that two runs can be compared review by review.
    order = np.argsort(rows, kind="stable")
    # Keep only the columns that all folds recorded.
    names = [c for c in answers[0].facts if all(c in one.facts for one in answers)]
    facts = pd.concat([one.facts[names] for one in answers], ignore_index=True)
    return Predictions(
        rows=rows[order],
        labels=np.concatenate([one.labels for one in answers])[order],
        predicted=np.concatenate([one.predicted for one in answers])[order],
        probabilities=np.concatenate([one.probabilities for one in answers])[order],
        class_names=answers[0].class_names,
        facts=facts.iloc[order].reset_index(drop=True),
    )
