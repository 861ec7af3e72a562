"""Everything that a finished run leaves: files in its folder, the same in the tracker."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinopoisk_ft.data.recipe import DataSplit
from kinopoisk_ft.files import write_atomically
from kinopoisk_ft.provenance import describe_environment
from kinopoisk_ft.statistics.calibration import calibration_metrics
from kinopoisk_ft.statistics.metrics import (
    HEADLINE,
    MARKED,
    classification_scores,
    count_confusion,
    majority_scores,
    per_class,
)
from kinopoisk_ft.statistics.predictions import as_table
from kinopoisk_ft.tasks.result import Fitted, Result
from kinopoisk_ft.text import to_one_line
from kinopoisk_ft.tracking.base import Tracker

log = logging.getLogger(__name__)

PYFUNC = Path(__file__).parents[1] / "serving" / "pyfunc.py"


def record_data(data: DataSplit, tracker: Tracker, out_dir: Path) -> None:
    """Record, before training, what the data are and what of the test set leaks into train."""
    tracker.tags({"split_digest": data.split_digest, "source_digest": data.source_digest})
    leakage = data.leakage.metrics()
    tracker.metrics(leakage, 0)
    described = {
        "class_names": data.class_names,
        "counts": data.counts,
        "source_digest": data.source_digest,
        "split_digest": data.split_digest,
        "leakage": leakage,
        "leakage_film_guess_p_value": data.leakage.p_value,
    }
    write_json(out_dir / "data.json", described)
    tracker.artifact(out_dir / "data.json")


def record(fitted: Fitted, data: DataSplit, tracker: Tracker, run_id: str, out_dir: Path) -> Result:
    """Score the test predictions, write files and metrics; returns the result."""
    labels = data.test["label"].to_numpy()
    scores = classification_scores(fitted.probabilities, labels)
    warning, parts = _compare_with_majority(fitted, data)
    result = Result(
        scores=scores,
        train_seconds=fitted.seconds["train"],
        eval_seconds=fitted.seconds["eval"],
        trainable_parameters=fitted.trainable,
        total_parameters=fitted.total,
        run_id=run_id,
        model_dir=str(out_dir / "model"),
        objective=fitted.objective,
        warning=warning,
    )
    step = int(fitted.history[-1]["step"]) if fitted.history else 0
    tracker.metrics(_metrics(fitted, data, scores), step)
    tracker.tags({"device": fitted.device, "precision": fitted.precision})
    if warning:
        tracker.tags({"not_above_majority": parts})
    counts = count_confusion(labels, fitted.probabilities.argmax(axis=1), len(data.class_names))
    files = _files(fitted, data, counts, out_dir)
    result.write(out_dir / "result.json")
    for file in [*files, out_dir / "result.json"]:
        tracker.artifact(file)
    tracker.model(out_dir / "model", PYFUNC, data.class_names)
    return result


def _compare_with_majority(fitted: Fitted, data: DataSplit) -> tuple[str, str]:
    """Return a warning, "" if the model beats the majority class, and the parts where it does not.

    Both scores count: on unequal classes a model that has learned can have the lower accuracy.
    """
    train = data.train["label"].to_numpy()
    lines, parts = [], []
    for name, part, probabilities in (
        ("test", data.test, fitted.probabilities),
        ("validation", data.val, fitted.validation),
    ):
        labels = part["label"].to_numpy()
        scores = classification_scores(probabilities, labels)
        floor = majority_scores(train, labels)
        if all(scores[key] <= floor[key] for key in MARKED):
            usual = to_one_line(data.class_names[int(np.bincount(train).argmax())])
            parts.append(name)
            lines.append(
                f"Not above the majority class: {HEADLINE} {scores[HEADLINE]:.3f} on {name}, "
                f"{floor[HEADLINE]:.3f} for always answering '{usual}'. "
                "This model has not learned; do not compare its score."
            )
    return next(iter(lines), ""), ", ".join(parts)


def _metrics(fitted: Fitted, data: DataSplit, scores: dict[str, float]) -> dict[str, float]:
    majority = majority_scores(data.train["label"].to_numpy(), data.test["label"].to_numpy())
    train_seconds = fitted.seconds["train"]
    return {
        **{f"test_{key}": value for key, value in scores.items()},
        "test_loss": fitted.loss,
        **{f"majority_{key}": value for key, value in majority.items()},
        **{f"{key}_seconds": value for key, value in fitted.seconds.items()},
        "trainable_parameters": fitted.trainable,
        "total_parameters": fitted.total,
        "tokens_per_second": fitted.tokens / train_seconds if train_seconds else 0.0,
        **_peak(fitted),
        **calibration_metrics(
            fitted.validation,
            data.val["label"].to_numpy(),
            fitted.probabilities,
            data.test["label"].to_numpy(),
        ),
        **fitted.seen.metrics(),
        **({} if fitted.read_before is None else fitted.read_before.metrics("pretraining")),
    }


def _peak(fitted: Fitted) -> dict[str, float]:
    """Return the peak of memory; nothing, and a warning, where the system does not record it."""
    if math.isfinite(fitted.peak_memory_mb):
        return {"peak_memory_mb": fitted.peak_memory_mb}
    log.warning("the peak of memory is unknown: this system does not record it")
    return {}


def _files(fitted: Fitted, data: DataSplit, counts: np.ndarray, out_dir: Path) -> list[Path]:
    """Write predictions, class report, plots and environment; return their paths.

    `counts` is the confusion matrix of the test split (true class, predicted class).
    """
    # Matplotlib takes a second to import: only a finished run needs it.
    from kinopoisk_ft.reporting.plots.run_plots import plot_confusion, plot_learning_curve

    names = data.class_names
    files = {
        name: out_dir / name
        for name in (
            "predictions.parquet",
            "predictions_validation.parquet",
            "class_report.json",
            "environment.json",
            "confusion_matrix.png",
            "learning_curve.png",
        )
    }
    for file, name, part, probabilities in (
        ("predictions.parquet", "test", data.test, fitted.probabilities),
        ("predictions_validation.parquet", "val", data.val, fitted.validation),
    ):
        part = part.assign(truncated=fitted.truncated[name])
        table = as_table(part, probabilities, names, data.train)
        table.to_parquet(files[file], index=False)
    write_json(files["class_report.json"], per_class(counts, names))
    write_json(files["environment.json"], describe_environment(torch.device(fitted.device)))
    plot_confusion(counts, names, files["confusion_matrix.png"])
    plot_learning_curve(fitted.history, files["learning_curve.png"])
    return list(files.values())


def write_json(file: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    write_atomically(file, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
